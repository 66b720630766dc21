"""One stream from its open to its end, on a call of its own and on one that it shares: the same for its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from guardwire import (
    Action,
    AsyncClient,
    AsyncManyStreams,
    Decision,
    Draining,
    EndReason,
    InputKind,
    PromptVerdict,
    RiskLevel,
    Role,
    RolledBack,
    TokenVerdicts,
)
from tests.clients.fake_server import FakeServer
from tests.clients.reading import BLUE, BOMB, BOOM, KNIFE, SKY, read, summary, tokens

Moderates = AsyncClient | AsyncManyStreams


@pytest.fixture(params=["own call", "shared call"])
async def client(request: pytest.FixtureRequest, target: str) -> AsyncIterator[Moderates]:
    async with AsyncClient(target) as async_client:
        if request.param == "own call":
            yield async_client
        else:
            async with async_client.moderate_many() as many:
                yield many


async def test_an_answer_from_open_to_summary(fake: FakeServer, client: Moderates) -> None:
    async with client.moderate([("user", "hello")], policy="strict") as stream:
        assert (stream.opened.session_id, stream.opened.limits.max_tokens_per_message) == ("fake-1", 16)
        await stream.push([SKY, BLUE])
        await stream.push([KNIFE])
        assert stream.num_tokens == 3
        await stream.finish()
        updates = await read(stream)
        assert await read(stream) == []
    assert fake.opens[0].policy == "strict"
    assert isinstance(updates[0], PromptVerdict)
    assert updates[0].risk_level is RiskLevel.SAFE
    assert [(verdict.index, verdict.risk_level) for verdict in tokens(updates)] == [
        (0, RiskLevel.SAFE),
        (1, RiskLevel.SAFE),
        (2, RiskLevel.CONTROVERSIAL),
    ]
    assert tokens(updates)[2].probabilities.controversial == 0.75
    end = summary(updates)
    assert (end.end_reason, end.num_tokens, end.num_controversial_tokens) == (EndReason.FINISHED, 3, 1)
    assert (end.action, end.duration_s) == (Action.ALLOW, 2.0)
    assert fake.num_abandoned == 0


async def test_long_pushes_are_split(fake: FakeServer, client: Moderates) -> None:
    async with client.moderate("hello") as stream:
        await stream.push([SKY] * 40)
        await stream.finish()
        assert len(tokens(await read(stream))) == 40
    assert [len(request.tokens.token_ids) for request in fake.requests] == [16, 16, 8, 0]


async def test_pushing_while_iterating_from_another_task(client: Moderates) -> None:
    async with client.moderate("hello") as stream:

        async def push() -> None:
            for _ in range(200):
                await stream.push([SKY])
            await stream.finish()

        pushing = asyncio.create_task(push())
        updates = await read(stream)
        await pushing
    assert [verdict.index for verdict in tokens(updates)] == list(range(200))


async def test_pushing_from_many_tasks_keeps_count(client: Moderates) -> None:
    async with client.moderate("hello") as stream:
        await asyncio.gather(*(stream.push([SKY] * 20) for _ in range(20)))
        await stream.finish()
        assert [verdict.index for verdict in tokens(await read(stream))] == list(range(400))


async def test_each_push_can_wait_for_its_verdict(client: Moderates) -> None:
    async with client.moderate("hello") as stream:
        assert isinstance(await anext(stream), PromptVerdict)
        for index in range(5):
            await stream.push([SKY])
            update = await anext(stream)
            assert isinstance(update, TokenVerdicts)
            assert (update.start_index, len(update), update[-1].index) == (index, 1, index)


async def test_a_caller_that_only_pushes_learns_of_the_block(client: Moderates) -> None:
    async with client.moderate("hello") as stream:
        async with asyncio.timeout(10):
            while not stream.blocked:
                await stream.push([BOMB])
        assert stream.decision is not None
        assert (stream.decision.action, stream.decision.role) == (Action.BLOCK, Role.ASSISTANT)
        assert (stream.decision.token_index, stream.decision.cut_index) == (1, 0)


async def test_a_prompt_can_be_blocked(client: Moderates) -> None:
    async with client.moderate("bomb") as stream:
        assert isinstance(await anext(stream), PromptVerdict)
        decision = await anext(stream)
        assert isinstance(decision, Decision)
        assert (decision.role, decision.enforced, stream.blocked) == (Role.USER, True, True)


async def test_end_on_block_ends_well_while_pushing(client: Moderates) -> None:
    async with client.moderate("hello", end_on_block=True) as stream:
        for _ in range(100):
            await stream.push([BOMB])
        await stream.finish()
        end = summary(await read(stream))
    assert (end.end_reason, end.action) == (EndReason.BLOCKED, Action.BLOCK)


async def test_observing_does_not_block(client: Moderates) -> None:
    async with client.moderate("hello", end_on_block=True, observe_only=True) as stream:
        await stream.push([BOMB, BOMB, SKY])
        await stream.finish()
        assert summary(await read(stream)).end_reason is EndReason.FINISHED
        assert stream.decision is not None
        assert not stream.blocked


async def test_rollback_and_user_turn(client: Moderates) -> None:
    async with client.moderate("hello") as stream:
        await stream.push([SKY, BOMB, BOOM])
        await stream.rollback(1)
        await stream.push([BLUE])
        await stream.user_turn("knife")
        await stream.push([SKY])
        await stream.finish()
        updates = await read(stream)
    assert [update for update in updates if isinstance(update, RolledBack)] == [RolledBack(1, Action.ALLOW)]
    assert [verdict.index for verdict in tokens(updates)] == [0, 1, 2, 1, 2]
    prompts = [update for update in updates if isinstance(update, PromptVerdict)]
    assert [(prompt.turn, prompt.risk_level) for prompt in prompts] == [
        (0, RiskLevel.SAFE),
        (1, RiskLevel.CONTROVERSIAL),
    ]
    assert summary(updates).num_unsafe_tokens == 0


async def test_text(client: Moderates) -> None:
    async with client.moderate("hello", input=InputKind.TEXT) as stream:
        for piece in ("hé", "llo bo", "mb", " boom"):
            await stream.push_text(piece)
        await stream.push_text("", flush=True)
        await stream.finish()
        updates = await read(stream)
    assert [(verdict.risk_level, verdict.text_end_offset) for verdict in tokens(updates)] == [
        (RiskLevel.SAFE, 6),
        (RiskLevel.UNSAFE, 11),
        (RiskLevel.UNSAFE, 16),
    ]
    [decision] = [update for update in updates if isinstance(update, Decision)]
    assert decision.cut_text_offset == 6


async def test_templated_prompt_and_resumption(fake: FakeServer, client: Moderates) -> None:
    async with client.moderate(token_ids=[1, 2, 3], resume_from=2, tokenizer_fingerprint="f") as stream:
        await stream.push([SKY, SKY, BLUE])
        await stream.finish()
        assert [verdict.index for verdict in tokens(await read(stream))] == [2]
    assert list(fake.opens[0].templated.token_ids) == [1, 2, 3]


async def test_draining_is_told(fake: FakeServer, client: Moderates) -> None:
    fake.drains = True
    async with client.moderate("hello") as stream:
        await stream.finish()
        [draining] = [update for update in await read(stream) if isinstance(update, Draining)]
    assert draining.deadline is not None
    assert draining.deadline.isoformat() == "2027-01-15T08:00:00+00:00"
