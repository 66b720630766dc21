"""What sharing a call changes: messages go together, ends stay apart, and the call's end is everyone's."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from guardwire import (
    AsyncClient,
    AsyncManyStreams,
    AsyncModerateStream,
    Cancelled,
    DeadlineExceeded,
    EndReason,
    InputKind,
    InvalidRequest,
    Overloaded,
    PromptVerdict,
    ServerFault,
    Unavailable,
    UpdatesLost,
)
from guardwire.unread_updates import MAX_UNREAD
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.reading import BOMB, SKY, push_forever, read, summary, tokens


async def judge(stream: AsyncModerateStream, number: int) -> int:
    for _ in range(number):
        await stream.push([SKY])
    await stream.finish()
    return summary(await read(stream)).num_tokens


async def test_what_is_pushed_in_one_step_is_one_message(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        streams = await asyncio.gather(*(many.moderate("hello") for _ in range(20)))
        num_before = len(fake.messages)
        for stream in streams:
            await stream.push([SKY])
            await stream.push([SKY, SKY])
        assert [len(tokens([await anext(stream), await anext(stream)])) for stream in streams] == [1] * 20
        assert [len(message.requests) for message in fake.messages[num_before:]] == [40]
        for stream in streams:
            await stream.finish()
        assert [summary(await read(stream)).num_tokens for stream in streams] == [3] * 20
    assert [len(message.requests) for message in fake.messages[num_before:]] == [40, 20]


async def test_many_streams_at_once_keep_apart(fake: FakeServer, client: AsyncClient) -> None:
    async def moderate(many: AsyncManyStreams, number: int) -> int:
        async with many.moderate("hello") as stream:
            return await judge(stream, number)

    async with client.moderate_many() as many:
        assert await asyncio.gather(*(moderate(many, number) for number in range(50))) == list(range(50))
        assert fake.num_active == 1
    await fake.wait_idle()
    assert (fake.num_abandoned, fake.num_half_closed) == (0, 1)
    assert len(fake.messages) < len(fake.requests)


async def test_an_error_ends_its_stream_alone(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        async with many.moderate("hello", input=InputKind.TEXT) as failing, many.moderate("hello") as other:
            await failing.push_text("sky ")
            await failing.rollback(7)
            for _ in range(2):
                with pytest.raises(InvalidRequest, match="cannot be kept"):
                    await read(failing)
            with pytest.raises(InvalidRequest) as caught:
                await failing.push_text("sky ")
            assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REFUSED")
            assert (caught.value.field, caught.value.violations[0].description) == ("request", caught.value.message)
            assert await judge(other, 3) == 3
        async with many.moderate("hello") as later:
            assert await judge(later, 1) == 1


async def test_a_stream_that_the_server_refuses_does_not_open(client: AsyncClient, fake: FakeServer) -> None:
    async with client.moderate_many() as many:
        fake.responses = []
        fake.failure, fake.fails_after = Failure(grpc.StatusCode.UNAVAILABLE), 0
        with pytest.raises(Unavailable):
            await many.moderate("hello")
        with pytest.raises(Unavailable):  # the call is over: no stream of it opens any more
            await many.moderate("hello")


async def test_the_end_of_the_call_ends_every_stream(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), 3
    async with client.moderate_many() as many:
        streams = await asyncio.gather(*(many.moderate("hello") for _ in range(3)))
        with pytest.raises(Overloaded):
            await push_forever(streams[0], [SKY])
        errors = []
        for stream in streams:
            assert isinstance(await anext(stream), PromptVerdict)  # what was judged before is not lost
            with pytest.raises(Overloaded) as caught:
                await read(stream)
            errors.append(caught.value)
        assert len(set(map(id, errors))) == 3
    assert fake.num_abandoned == 3


async def test_a_server_that_ends_the_call_early_breaks_the_contract(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        fake.hangs_up = True
        await stream.push([SKY])
        assert len(tokens([await anext(stream), await anext(stream)])) == 1
        with pytest.raises(ServerFault, match="without a summary"):
            await read(stream)


async def test_a_stream_that_breaks_the_contract_ends_alone(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as broken, many.moderate("hello") as other:
        fake.responses = [pb.ModerateStreamResponse(decision=pb.Decision())]
        await broken.push([SKY])
        with pytest.raises(ServerFault, match="left out Action"):
            await read(broken)
        fake.responses = None
        assert await judge(other, 2) == 2


async def test_leaving_a_stream_finishes_it_and_drops_the_rest(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        async with many.moderate("hello") as left:
            await left.push([SKY])
            assert isinstance(await anext(left), PromptVerdict)
            await anext(left)
            await left.push([SKY])  # not written yet: it never will be
        with pytest.raises(Cancelled, match="was left"):
            await left.push([SKY])
        with pytest.raises(Cancelled, match="was left"):
            await read(left)
        async with many.moderate("hello") as other:
            assert await judge(other, 1) == 1
    await fake.wait_idle()
    assert fake.num_abandoned == 0
    assert [request.WhichOneof("request") for request in fake.requests] == ["tokens", "finish", "tokens", "finish"]


async def test_leaving_a_stream_frees_the_tasks_that_use_it(client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        for _ in range(20):
            async with many.moderate("hello") as stream:
                assert isinstance(await anext(stream), PromptVerdict)
                tasks = [asyncio.create_task(push_forever(stream, [SKY])), asyncio.create_task(read(stream))]
                await asyncio.sleep(0)
            for task in tasks:
                with pytest.raises(Cancelled):
                    await task


async def test_a_push_waits_for_the_network_and_leaving_frees_it(fake: FakeServer, client: AsyncClient) -> None:
    num_pushed = 0

    async def push(stream: AsyncModerateStream) -> None:
        nonlocal num_pushed
        while True:
            await stream.push_text("sky " * 25_000)
            num_pushed += 1

    async with client.moderate_many() as many:
        async with many.moderate("hello", input=InputKind.TEXT) as stream, many.moderate("hello") as other:
            fake.silent = True
            pushing = asyncio.create_task(push(stream))
            await asyncio.wait([pushing], timeout=0.3)  # until the windows of the connection are full
            num_before = num_pushed
            await asyncio.wait([pushing], timeout=0.2)
            assert num_pushed == num_before < 1000
            await other.push([SKY])  # its own share of what waits is free
        with pytest.raises(Cancelled):
            await pushing
    await fake.wait_idle()


async def test_a_push_that_is_cancelled_while_it_waits_costs_nothing(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        pushing = asyncio.create_task(push_forever(stream, [SKY]))
        await anext(stream)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing
        num_pushed = stream.num_tokens
        await stream.finish()
        assert summary(await read(stream)).num_tokens == num_pushed


async def test_leaving_the_call_ends_its_streams(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        stream = await many.moderate("hello")
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
    with pytest.raises(Cancelled):
        await reading
    with pytest.raises(Cancelled):
        await stream.push([SKY])
    with pytest.raises(Cancelled):
        await many.moderate("hello")
    await fake.wait_idle()
    assert fake.num_abandoned == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("guardwire-")]


async def test_an_error_in_the_block_cancels_and_passes(fake: FakeServer, client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.moderate_many() as many, many.moderate("hello"):
            raise ZeroDivisionError
    await fake.wait_idle()


async def test_a_block_ends_a_stream_while_it_is_pushed_on(fake: FakeServer, client: AsyncClient) -> None:
    async with (
        client.moderate_many() as many,
        many.moderate("hello", end_on_block=True) as stream,
        many.moderate("hello") as other,
    ):
        for _ in range(100):
            await stream.push([BOMB])
        await stream.finish()
        assert summary(await read(stream)).end_reason is EndReason.BLOCKED
        assert stream.blocked
        assert await judge(other, 1) == 1


async def test_deadlines(fake: FakeServer, target: str) -> None:
    async with AsyncClient(target, timeout_s=0.05) as client, client.moderate_many() as many:
        async with many.moderate("hello", timeout_s=0.05) as stream:
            with pytest.raises(DeadlineExceeded, match="longer than"):
                await read(stream)
        async with many.moderate("hello", timeout_s=60) as other:
            assert await judge(other, 1) == 1
        fake.silent = True
        with pytest.raises(DeadlineExceeded, match="did not open"):
            await many.moderate("hello")
    async with AsyncClient(target) as client, client.moderate_many(timeout_s=0.05) as many:
        with pytest.raises(DeadlineExceeded):
            await many.moderate("hello")


async def test_updates_that_nobody_reads_are_bounded(client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        for _ in range(MAX_UNREAD // 16 + 1):
            await stream.push([SKY] * 16)
        async with asyncio.timeout(10):
            while not stream.blocked:  # known to the end, whoever reads
                await stream.push([BOMB])
        await stream.finish()
        with pytest.raises(UpdatesLost) as caught:
            await anext(stream)
        assert caught.value.code is grpc.StatusCode.DATA_LOSS
        updates = await read(stream)
        assert summary(updates).num_tokens == stream.num_tokens
        assert tokens(updates)[-1].index == stream.num_tokens - 1


async def test_local_mistakes_leave_the_stream_alone(client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        for mistake in (stream.push([-1]), stream.push_text("hi"), stream.rollback(1)):
            with pytest.raises(InvalidRequest):
                await mistake
        assert await judge(stream, 1) == 1


async def test_misuse(client: AsyncClient) -> None:
    many = client.moderate_many()
    with pytest.raises(RuntimeError, match="inside"):
        await many.moderate("hello")
    async with many:
        with pytest.raises(RuntimeError):
            await many.__aenter__()
        with pytest.raises(TypeError):
            many.moderate("hello", end_on_blok=True)  # type: ignore[call-arg]
        with pytest.raises(InvalidRequest):
            many.moderate([("nobody", "hello")])
