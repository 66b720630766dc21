"""A tenant that pushes faster than it may is refused, and another one beside it notices nothing."""

import asyncio

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.ports import LONG_TEXT_CHARS
from tests.rpc.limited import FULL, NEXT_TO_NOTHING, Limited, assert_too_fast, opened
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import (
    answer_ids,
    finish,
    opening,
    templated_opening,
    text,
    tokens,
    user,
    user_tokens,
    user_turn,
)
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S


async def num_prompt_tokens(server: RunningServer, opening_request: pb.ModerateStreamRequest) -> int:
    async with server.stream() as call:
        await call.send(opening_request)
        received = await call.read_until("opened")
    assert received.opened
    return received.opened.num_prompt_tokens


@pytest.fixture
async def num_opening(limited: Limited, start_server: StartServer) -> int:
    """Tokens of the prompt that most tests open with."""
    return await num_prompt_tokens(await start_server(), opening())


async def test_tokens_beyond_the_rate(limited: Limited, num_opening: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=num_opening + 10)
    async with acme.stream() as call:
        limited.server.stream_gate.hold()
        async with limited.taking(4):
            await call.send(opening(), tokens(answer_ids(6)), tokens(answer_ids(4)), tokens(answer_ids(2)))
        limited.server.stream_gate.release()
        assert_too_fast(await call.failure(), 2)
        assert [verdict.index for verdict in call.received.verdicts] == list(range(10))  # all before is judged
    async with acme.stream() as call:
        await call.send(opening())
        assert_too_fast(await call.failure(), num_opening)
        assert call.received.kinds == []
    assert await num_prompt_tokens(limited.beta, opening()) == num_opening


async def test_other_streams_of_the_tenant_go_on(limited: Limited, num_opening: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=2 * num_opening + 10)
    async with await opened(acme) as one, await opened(acme) as other:
        await one.send(tokens(answer_ids(8)), tokens(answer_ids(5)))
        assert_too_fast(await one.failure(), 3)
        await other.send(tokens(answer_ids(2)))
        received = await other.run()
        assert received.summary
        assert received.summary.num_tokens == 2


async def test_who_was_too_fast_is_let_in_again(limited: Limited, num_opening: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=num_opening)
    async with await opened(acme):
        async with acme.stream() as call:
            await call.send(opening())
            assert_too_fast(await call.failure(), num_opening)
        await limited.change(max_streams=2, tokens_per_s=1e6, burst_tokens=num_opening)
        async with asyncio.timeout(WAIT_S), await opened(acme) as call:
            assert (await call.run()).summary


async def test_text_counts_as_the_tokens_that_it_becomes(limited: Limited, num_opening: int) -> None:
    words = "Mix flour and water, then wait."
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=200)
    assert limited.server.models.stream
    num_words = len(limited.server.models.stream.tokenizer.encode_plain(words))
    num_times = (200 - num_opening) // num_words
    async with acme.stream() as call:
        await call.send(opening(input=pb.INPUT_KIND_TEXT))
        for _ in range(num_times):
            await call.send(text(words, flush=True))
        await call.read_verdicts(num_times * num_words)
        await call.send(text(words))  # whose last word is held back
        failure = await call.failure()
        assert (failure.code, failure.reason) == (FULL, "TENANT_RATE")
        assert len(call.received.verdicts) == num_times * num_words


async def test_the_word_that_is_held_back_counts_too(limited: Limited, num_opening: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=num_opening)
    async with acme.stream() as call:
        await call.send(opening(input=pb.INPUT_KIND_TEXT), text("a"))
        await call.read_until("prompt_verdict")  # nothing is settled, so nothing is counted
        await call.send(finish())
        assert_too_fast(await call.failure(), 1)
        assert call.received.summary is None


@pytest.mark.parametrize("kind", ["text", "ids"])
async def test_user_turns_count(limited: Limited, num_opening: int, kind: str) -> None:
    request = user_turn("And how much salt do I take?") if kind == "text" else user_tokens(answer_ids(20))
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=num_opening + 60)
    async with await opened(acme) as call:
        await call.send(request)
        while len(call.received.prompt_verdicts) < 2:
            await call.read()
        await call.send(request, request)
        failure = await call.failure()
        assert (failure.code, failure.reason) == (FULL, "TENANT_RATE")
        assert len(call.received.prompt_verdicts) in (2, 3)


async def test_templated_prompts_count(limited: Limited) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=40)
    assert limited.server.models.stream
    prompt = limited.server.models.stream.tokenizer.encode_template("<|im_start|>user\nHi<|im_end|>\n")
    async with acme.stream() as call:
        await call.send(templated_opening(prompt), tokens(answer_ids(20)), tokens(answer_ids(20)))
        assert_too_fast(await call.failure(), len(prompt))
        assert len(call.received.verdicts) == 20


async def test_classified_prompts_count(limited: Limited) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=300)
    request = pb.ClassifyRequest(messages=[user()])
    num_prompt = (await limited.beta.stub.Classify(request, timeout=WAIT_S)).usage.num_prompt_tokens
    for _ in range(300 // num_prompt):
        await acme.stub.Classify(request, timeout=WAIT_S)
    assert_too_fast(await acme.classify_failure(request), num_prompt - 300 % num_prompt)


async def test_packed_steps_count_as_a_whole(limited: Limited, num_opening: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=4 * num_opening + 10)
    async with ManyCall(acme) as many:
        await many.send(*((number, opening()) for number in range(1, 5)))
        await many.read_until(many.has_judged_prompts(1, 2, 3, 4))
        for token_id in (5, 6):
            await many.send_step(*((number, token_id) for number in range(1, 5)))
        await many.send_step(*((number, 7) for number in range(1, 5)))  # of which two are left
        await many.read_until(many.has_ended(3, 4))
        assert {number: error.reason for number, error in many.errors.items()} == {3: "TENANT_RATE", 4: "TENANT_RATE"}
        for error in many.errors.values():
            assert error.code == FULL.value[0]
            assert error.retry_delay.ToTimedelta().total_seconds() == pytest.approx(2 / NEXT_TO_NOTHING, rel=0.01)
        await many.send((1, finish()), (2, finish()))
        await many.read_until(many.has_ended(1, 2))
        assert [len(many.received[number].verdicts) for number in range(1, 5)] == [3, 3, 2, 2]
        await many.send((5, opening()), (6, opening()))
        await many.read_until(many.has_ended(5, 6))
        assert many.errors[5].reason == "TENANT_RATE"
        await many.send_step((9, 5))
        await many.read_until(many.has_ended(9))
        assert many.errors[9].reason == "TENANT_RATE"


@pytest.mark.parametrize("num_ids", [1, 8])
async def test_messages_on_shared_calls_count(limited: Limited, num_opening: int, num_ids: int) -> None:
    acme = await limited.start(tokens_per_s=NEXT_TO_NOTHING, burst_tokens=2 * num_opening + 10)
    ids = answer_ids(8)
    pushes = [tokens(ids[start : start + num_ids]) for start in range(0, 8, num_ids)]
    async with ManyCall(acme) as many:
        await many.send(
            (1, opening()), (2, opening()), *((1, push) for push in pushes), *((2, push) for push in pushes)
        )
        await many.read_until(many.has_ended(2))
        assert many.errors[2].reason == "TENANT_RATE"
        await many.send((1, finish()))
        await many.read_until(many.has_ended(1))
        assert len(many.received[1].verdicts) == 8


@pytest.mark.parametrize("kind", ["prompt", "long prompt", "tokens", "user turn", "text", "conversation"])
async def test_more_than_the_tenant_may_ever_push_at_once(limited: Limited, num_opening: int, kind: str) -> None:
    long = "Bake bread. " * (LONG_TEXT_CHARS // 10)
    settings = {"max_message_bytes": 2 * len(long), "max_tokens_per_message": 512}
    acme = await limited.start(settings=settings, tokens_per_s=1000.0, burst_tokens=150)
    requests, field = {
        "prompt": ([opening([user("Bake bread. " * 100)])], "open.conversation"),
        "long prompt": ([opening([user(long)])], "open.conversation"),
        "tokens": ([opening(), tokens(answer_ids(151))], "tokens.token_ids"),
        "user turn": ([opening(), user_turn("Bake bread. " * 100)], "user_turn.content"),
        "text": ([opening(input=pb.INPUT_KIND_TEXT), text("Bake bread. " * 100)], "text.text"),
        "conversation": ([], "messages"),
    }[kind]
    if kind == "conversation":
        failure = await acme.classify_failure(pb.ClassifyRequest(messages=[user(long)]))
    else:
        async with acme.stream() as call:
            await call.send(*requests)
            failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TENANT_BURST")
    assert failure.field == field
    assert "tokens, the tenant's limit at once is 150" in failure.message
    assert failure.retry_after_s is None
