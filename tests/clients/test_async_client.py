from __future__ import annotations

import asyncio

import pytest

from guardwire import (
    Action,
    AsyncClient,
    Category,
    Debounce,
    DecisionReason,
    Message,
    ModelKind,
    Refusal,
    RiskLevel,
    RiskProbabilities,
    Role,
    ServerFault,
)
from guardwire.tokenizer import fingerprint
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import FakeServer
from tests.clients.fake_tokenizer import tokenizer_fingerprint, tokenizer_json


async def test_classify_a_message(fake: FakeServer, client: AsyncClient) -> None:
    verdict = await client.classify("bomb", policy="strict", model="m")
    assert fake.classify_requests == [
        pb.ClassifyRequest(messages=[pb.Message(role=pb.ROLE_USER, content="bomb")], policy="strict", model="m")
    ]
    assert (verdict.judged, verdict.risk_level, verdict.categories) == (True, RiskLevel.UNSAFE, (Category.VIOLENT,))
    assert (verdict.action, verdict.reason) == (Action.BLOCK, DecisionReason.VERDICT)
    assert verdict.refusal is None
    assert verdict.probabilities == RiskProbabilities(safe=0.125, controversial=0.125, unsafe=0.75)
    assert (verdict.model, verdict.policy) == ("m", "strict")
    assert verdict.usage.duration_s == pytest.approx(0.0015)


async def test_classify_an_answer(client: AsyncClient) -> None:
    verdict = await client.classify([Message(Role.USER, "hello"), {"role": "assistant", "content": "i cannot"}])
    assert (verdict.risk_level, verdict.categories, verdict.action) == (RiskLevel.SAFE, (), Action.ALLOW)
    assert verdict.refusal is Refusal.YES


async def test_what_was_not_judged_has_no_risk_level(client: AsyncClient) -> None:
    verdict = await client.classify("gibberish")
    assert (verdict.judged, verdict.risk_level, verdict.probabilities) == (False, None, None)
    assert (verdict.action, verdict.reason) == (Action.BLOCK, DecisionReason.NOT_JUDGED)


async def test_metadata_goes_with_every_call(fake: FakeServer, target: str) -> None:
    async with AsyncClient(target, metadata=[("authorization", "Bearer x")]) as client:
        await client.classify("hi")
    assert fake.metadata["authorization"] == "Bearer x"


async def test_many_calls_at_once(client: AsyncClient) -> None:
    texts = ["bomb", "knife", "sky"] * 20
    verdicts = await asyncio.gather(*(client.classify(text) for text in texts))
    levels = {"bomb": RiskLevel.UNSAFE, "knife": RiskLevel.CONTROVERSIAL, "sky": RiskLevel.SAFE}
    assert [verdict.risk_level for verdict in verdicts] == [levels[text] for text in texts]


async def test_a_cancelled_task_cancels_its_call(fake: FakeServer, client: AsyncClient) -> None:
    fake.silent = True
    task = asyncio.create_task(client.classify("hi"))
    await fake.wait_active(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake.wait_idle()


async def test_server_info(client: AsyncClient) -> None:
    info = await client.server_info()
    model = info.model(ModelKind.STREAM)
    assert model is not None
    assert (model.name, model.demo, model.max_context_tokens) == ("fake-stream", True, 8192)
    assert model.prompt_categories == (Category.VIOLENT, Category.JAILBREAK)
    assert info.model(ModelKind.GEN) is None
    [policy] = info.policies
    assert (policy.debounce, policy.on_error) == (Debounce.SAME_LEVEL, Action.BLOCK)
    assert (policy.user.unsafe, policy.user.controversial) == (Action.BLOCK, None)
    assert policy.user.categories == ((Category.PII, Action.FLAG),)
    assert (info.limits.max_tokens_per_message, info.load.num_step_sequences) == (16, 20)
    assert info.policies_version == "5" * 64


async def test_tokenizer(client: AsyncClient) -> None:
    content = await client.tokenizer_json()
    assert content == tokenizer_json()
    assert fingerprint(content) == tokenizer_fingerprint()


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "of None bytes"),
        ([pb.GetTokenizerResponse(num_bytes=3, chunk=b"{}")], "2 of 3 bytes"),
        ([pb.GetTokenizerResponse(num_bytes=1, chunk=b"{}")], "more of the tokenizer"),
        ([pb.GetTokenizerResponse(num_bytes=2, chunk=b"{}")], "cannot be read"),
        ([pb.GetTokenizerResponse(num_bytes=1, chunk=b"{")], "cannot be read"),
        (
            [
                pb.GetTokenizerResponse(
                    num_bytes=len(tokenizer_json()), chunk=tokenizer_json(), tokenizer_fingerprint="f"
                )
            ],
            "the server says f",
        ),
    ],
)
async def test_a_tokenizer_that_is_not_what_it_says_is_refused(
    fake: FakeServer, client: AsyncClient, pieces: list[pb.GetTokenizerResponse], message: str
) -> None:
    fake.pieces = pieces
    with pytest.raises(ServerFault, match=message):
        await client.tokenizer_json()


async def test_closing_twice_and_unused(target: str) -> None:
    client = AsyncClient(target)
    await client.close()
    await client.classify("hi")
    await client.close()
    await client.close()


def test_a_client_can_be_made_outside_a_loop() -> None:
    AsyncClient("localhost:1")
