"""How streams end: left, cancelled, failed, or broken."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from guardwire import (
    AsyncClient,
    AsyncModerateStream,
    Cancelled,
    InputKind,
    InvalidRequest,
    Overloaded,
    PromptVerdict,
    ServerFault,
)
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.reading import SKY, push_forever, read, summary, tokens


async def test_leaving_early_cancels(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        await stream.push([SKY])
    await fake.wait_idle()
    assert fake.num_abandoned == 1
    with pytest.raises(Cancelled):
        await stream.push([SKY])
    with pytest.raises(Cancelled):
        await read(stream)


async def test_an_error_in_the_block_cancels_and_passes(fake: FakeServer, client: AsyncClient) -> None:
    async def moderate() -> None:
        async with client.moderate("hello"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await moderate()
    await fake.wait_idle()
    assert fake.num_abandoned == 1


async def test_a_cancelled_task_cancels_its_stream(fake: FakeServer, client: AsyncClient) -> None:
    async def moderate() -> None:
        async with client.moderate("hello") as stream:
            await read(stream)

    for silent in (False, True):
        fake.silent = silent
        task = asyncio.create_task(moderate())
        await fake.wait_active(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fake.wait_idle()


async def test_leaving_frees_the_tasks_that_use_the_stream(client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        assert isinstance(await anext(stream), PromptVerdict)
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)  # it waits for an update now
    with pytest.raises(Cancelled):
        await reading
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "guardwire-stream"]


async def test_leaving_while_another_task_pushes(client: AsyncClient) -> None:
    for _ in range(20):
        async with client.moderate("hello") as stream:
            pushing = asyncio.create_task(push_forever(stream, [SKY]))
            await anext(stream)
            await anext(stream)
        with pytest.raises(Cancelled):
            await pushing


async def test_leaving_while_a_push_waits_for_the_network(fake: FakeServer, client: AsyncClient) -> None:
    async def push(stream: AsyncModerateStream) -> None:
        while True:
            await stream.push_text("sky " * 25_000)

    fake.silent, fake.fails_after = True, 1
    async with client.moderate("hello", input=InputKind.TEXT) as stream:
        pushing = asyncio.create_task(push(stream))
        await asyncio.wait([pushing], timeout=0.3)  # until the windows of the connection are full
    with pytest.raises(Cancelled):
        await pushing


async def test_a_push_that_is_cancelled_ends_its_stream(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        pushing = asyncio.create_task(push_forever(stream, [SKY]))
        await anext(stream)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing


async def test_an_error_in_the_middle_reaches_pushing_and_iterating(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), 3
    async with client.moderate("hello") as stream:
        with pytest.raises(Overloaded):
            await push_forever(stream, [SKY])
        updates = [await anext(stream) for _ in range(3)]  # what was judged before the error is not lost
        with pytest.raises(Overloaded):
            await read(stream)
    assert [verdict.index for verdict in tokens(updates)] == [0, 1]


async def test_a_push_that_races_with_the_end_never_hides_the_status(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
    for _ in range(100):
        fake.requests.clear()
        fake.fails_after = 20
        async with client.moderate("hello") as stream:
            with pytest.raises(Overloaded):
                await push_forever(stream, [SKY] * 16)
            with pytest.raises(Overloaded):
                await read(stream)


async def test_local_mistakes_leave_the_stream_alone(client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        for mistake in (stream.push([-1]), stream.push_text("hi"), stream.rollback(1)):
            with pytest.raises(InvalidRequest):
                await mistake
        await stream.push([SKY])
        await stream.finish()
        with pytest.raises(InvalidRequest, match="finished"):
            await stream.push([SKY])
        assert summary(await read(stream)).num_tokens == 1


async def test_many_streams_at_once_keep_apart(fake: FakeServer, client: AsyncClient) -> None:
    async def moderate(number: int) -> int:
        async with client.moderate("hello") as stream:
            for _ in range(number):
                await stream.push([SKY])
            await stream.finish()
            return summary(await read(stream)).num_tokens

    assert await asyncio.gather(*(moderate(number) for number in range(50))) == list(range(50))
    await fake.wait_idle()
    assert fake.num_abandoned == 0


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        ([], "without a summary"),
        ([pb.ModerateStreamResponse(summary=pb.Summary())], "first message"),
        ([pb.ModerateStreamResponse(decision=pb.Decision())], "left out Action"),
    ],
)
async def test_a_stream_that_breaks_the_contract_fails(
    fake: FakeServer, client: AsyncClient, responses: list[pb.ModerateStreamResponse], message: str
) -> None:
    fake.responses = responses
    with pytest.raises(ServerFault, match=message):
        async with client.moderate("hello"):
            pass


async def test_an_end_without_summary_is_never_taken_for_an_end(fake: FakeServer, client: AsyncClient) -> None:
    fake.responses = [pb.ModerateStreamResponse(opened=pb.StreamOpened())]
    async with client.moderate("hello") as stream:
        with pytest.raises(ServerFault, match="without a summary"):
            await read(stream)


async def test_awaiting_opens_and_leaving_ends(fake: FakeServer, client: AsyncClient) -> None:
    stream = await client.moderate("hello")
    await stream.push([SKY])
    await stream.leave()
    await stream.leave()
    with pytest.raises(Cancelled):
        await stream.push([SKY])
    async with await client.moderate("hello") as entered:
        await entered.finish()
        assert summary(await read(entered)).num_tokens == 0
    with pytest.raises(RuntimeError):
        await entered
    await client.moderate("hello").leave()


async def test_misuse(client: AsyncClient) -> None:
    stream = client.moderate("hello")
    with pytest.raises(RuntimeError):
        await stream.push([SKY])
    with pytest.raises(RuntimeError):
        _ = stream.opened
    async with stream:
        with pytest.raises(RuntimeError):
            await stream.__aenter__()
    with pytest.raises(TypeError):
        client.moderate("hello", end_on_blok=True)  # type: ignore[call-arg]
