"""Single tokens and their verdicts travel packed on a call that streams share; nothing else changes."""

from __future__ import annotations

import asyncio

import pytest

from guardwire import AsyncClient, AsyncModerateStream, PromptVerdict, ServerFault, TokenVerdicts, Update
from tests.clients.fake_server import FakeServer
from tests.clients.fake_step import safe_verdicts
from tests.clients.reading import BLUE, BOMB, BOOM, KNIFE, SKY, read, summary, tokens


async def verdict(stream: AsyncModerateStream) -> TokenVerdicts:
    async for update in stream:
        if isinstance(update, TokenVerdicts):
            return update
    raise AssertionError("the stream ended without a verdict")


async def test_the_tokens_of_a_step_are_one_packed_message(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        streams = await asyncio.gather(*(many.moderate("hello") for _ in range(20)))
        num_before = len(fake.messages)
        for token_id in (SKY, BOMB):
            for stream in streams:
                await stream.push([token_id])
            for stream in streams:
                assert len(await verdict(stream)) == 1
        sent = fake.messages[num_before:]
        assert [(len(message.requests), len(message.step.stream_ids)) for message in sent] == [(0, 20), (0, 20)]
        assert [set(message.step.token_ids) for message in sent] == [{SKY}, {BOMB}]


async def moderate(stream: AsyncModerateStream, number: int, *, waits: bool) -> list[Update]:
    """The updates of an answer with a bit of everything; streams of different numbers differ."""
    updates: list[Update] = []

    async def push(*token_ids: int) -> None:
        await stream.push(token_ids)
        heard = not waits
        while not heard:
            updates.append(await anext(stream))
            heard = isinstance(updates[-1], TokenVerdicts)

    for token_id in [SKY, KNIFE, BLUE][: number % 4]:
        await push(token_id)
    await push(SKY, BLUE)
    await push(BOMB)
    await push(BOOM)
    await stream.rollback(stream.num_tokens - 1)
    await push(SKY)
    await stream.user_turn("and then?")
    for _ in range(number):
        await push(BLUE)
    await push(KNIFE)
    await stream.finish()
    return updates + await read(stream)


@pytest.mark.parametrize("waits", [True, False])
async def test_results_are_those_of_a_call_of_its_own(fake: FakeServer, client: AsyncClient, waits: bool) -> None:
    async def alone(number: int) -> list[Update]:
        async with client.moderate("hello") as stream:
            return await moderate(stream, number, waits=waits)

    expected = [await alone(number) for number in range(8)]
    async with client.moderate_many() as many:
        streams = await asyncio.gather(*(many.moderate("hello") for _ in range(8)))
        shared = (moderate(stream, number, waits=waits) for number, stream in enumerate(streams))
        assert await asyncio.gather(*shared) == expected
    if waits:
        assert sum(len(message.step.stream_ids) for message in fake.messages) >= 50


async def test_a_stream_may_stand_in_a_step_more_than_once(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        assert isinstance(await anext(stream), PromptVerdict)
        for token_id in (SKY, BOMB, BLUE):
            await stream.push([token_id])
        verdicts = tokens([await anext(stream) for _ in range(3)])
        assert [verdict.index for verdict in verdicts] == [0, 1, 2]
        assert list(fake.messages[-1].step.token_ids) == [SKY, BOMB, BLUE]


async def test_verdicts_on_streams_that_were_left_are_dropped(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as other:
        async with many.moderate("hello"):
            pass
        fake.step = safe_verdicts(2, 1, 99)
        await other.push([BOMB])
        assert [verdict.index for verdict in await verdict(other)] == [0]
        await other.finish()
        assert summary(await read(other)).num_tokens == 1


async def test_verdicts_that_nobody_can_tell_apart_end_the_call(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as first, many.moderate("hello") as second:
        fake.step = safe_verdicts(1, 2)
        del fake.step.categories[0]
        await first.push([SKY])
        for stream in (first, second):
            with pytest.raises(ServerFault, match="differ in length"):
                await read(stream)
    await fake.wait_idle()


async def test_a_packed_verdict_that_breaks_the_contract_ends_its_stream_alone(
    fake: FakeServer, client: AsyncClient
) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as broken, many.moderate("hello") as other:
        fake.step = safe_verdicts(1, 2)
        fake.step.risk_levels[0] = 9  # type: ignore[call-overload]
        for stream in (broken, other):
            await stream.push([SKY])
        with pytest.raises(ServerFault, match="RiskLevel 9"):
            await read(broken)
        assert len(await verdict(other)) == 1
        await other.finish()
        assert summary(await read(other)).num_tokens == 1
