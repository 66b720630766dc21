"""However a call ends, its span ends once and says how; what the caller gave up is no error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

from guardwire import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Overloaded,
    ServerFault,
    StreamAborted,
    Unavailable,
)
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.reading import BOMB, SKY, push_forever, read
from tests.clients.recorded_spans import RecordedSpans, attributes, outcome
from tests.clients.relay import Relay

Made = Callable[..., AsyncClient]
Outcome = tuple[str | None, str | None]

GIVEN_UP: Outcome = ("CANCELLED", None)
TOO_LATE: Outcome = ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")


async def left_after_a_block(fake: FakeServer, client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        await stream.push([BOMB, BOMB])
        while not stream.blocked:
            await anext(stream)


async def left_by_an_error(fake: FakeServer, client: AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        async with client.moderate("hello"):
            raise ZeroDivisionError


async def left_by_its_task(fake: FakeServer, client: AsyncClient) -> None:
    async def moderate() -> None:
        async with client.moderate("hello") as stream:
            await read(stream)

    task = asyncio.create_task(moderate())
    await fake.wait_active(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def left_before_it_was_read(fake: FakeServer, client: AsyncClient) -> None:
    entering = asyncio.create_task(client.moderate("hello").__aenter__())
    await asyncio.sleep(0)  # the call has begun, and the task that reads it has not
    (reader,) = (task for task in asyncio.all_tasks() if task.get_name() == "guardwire-stream")
    reader.cancel()
    with pytest.raises(Cancelled):
        await entering


async def left_by_closing_the_client(fake: FakeServer, client: AsyncClient) -> None:
    stream = await client.moderate("hello")
    await client.close()
    with pytest.raises(Cancelled):
        await read(stream)


async def refused(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(Overloaded):
        await client.moderate("hello")


async def failed_in_the_middle(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.ABORTED), 3
    async with client.moderate("hello") as stream:
        with pytest.raises(StreamAborted):
            await push_forever(stream, [SKY])


async def given_up_by_the_server(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.CANCELLED), 1
    async with client.moderate("hello") as stream:
        with pytest.raises(Cancelled):
            await push_forever(stream, [SKY])


async def past_its_deadline(fake: FakeServer, client: AsyncClient) -> None:
    fake.silent, fake.fails_after = True, 1
    async with client.moderate("hello", timeout_s=0.1) as stream:
        with pytest.raises(DeadlineExceeded):
            await push_forever(stream, [SKY])


async def never_opened(fake: FakeServer, client: AsyncClient) -> None:
    fake.silent = True
    with pytest.raises(DeadlineExceeded, match="did not open"):
        await client.moderate("hello")


async def without_a_summary(fake: FakeServer, client: AsyncClient) -> None:
    fake.responses = [pb.ModerateStreamResponse(opened=pb.StreamOpened())]
    async with client.moderate("hello") as stream:
        with pytest.raises(ServerFault):
            await read(stream)


async def on_a_closed_client(fake: FakeServer, client: AsyncClient) -> None:
    await client.server_info()
    await client.close()
    with pytest.raises(Exception, match="closed"):
        await client.moderate("hello")


Way = Callable[[FakeServer, AsyncClient], Awaitable[None]]

WAYS: list[tuple[Way, float, Outcome]] = [
    (left_after_a_block, 60, GIVEN_UP),
    (left_by_an_error, 60, GIVEN_UP),
    (left_by_its_task, 60, GIVEN_UP),
    (left_before_it_was_read, 60, GIVEN_UP),
    (left_by_closing_the_client, 60, GIVEN_UP),
    (refused, 60, ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED")),
    (failed_in_the_middle, 60, ("ABORTED", "ABORTED")),
    (given_up_by_the_server, 60, ("CANCELLED", "CANCELLED")),
    (past_its_deadline, 60, TOO_LATE),
    (never_opened, 0.1, TOO_LATE),
    (without_a_summary, 60, ("INTERNAL", "INTERNAL")),
    (on_a_closed_client, 60, (None, "grpc._cython.cygrpc.UsageError")),
]


@pytest.mark.parametrize(("way", "timeout_s", "expected"), WAYS, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_stream_ends(
    fake: FakeServer, target: str, spans: RecordedSpans, way: Way, timeout_s: float, expected: Outcome
) -> None:
    async with AsyncClient(target, timeout_s=timeout_s, tracer_provider=spans.provider) as client:
        await way(fake, client)
        (stream,) = spans.named("ModerateStream")
    assert outcome(stream) == expected
    assert len(spans.named("ModerateStream")) == 1


async def test_the_decision_outlives_the_stream_that_was_left(
    fake: FakeServer, target: str, spans: RecordedSpans
) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        await left_after_a_block(fake, client)
    told = attributes(spans.only())
    assert (told["guardwire.action"], told["guardwire.num_tokens"], told["guardwire.num_verdicts"]) == ("block", 2, 2)


async def test_a_stream_that_was_not_judged_tells_no_action(
    fake: FakeServer, target: str, spans: RecordedSpans
) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        await refused(fake, client)
    told = attributes(spans.only())
    assert ("guardwire.action" in told, told["guardwire.num_verdicts"]) == (False, 0)


async def test_a_connection_that_drops(target: str, spans: RecordedSpans) -> None:
    async with Relay(target) as relay, AsyncClient(relay.target, tracer_provider=spans.provider) as client:
        async with client.moderate("hello") as stream:
            relay.cut()
            with pytest.raises(Unavailable):
                await read(stream)
        with pytest.raises(Unavailable):
            await client.classify("hello")
    assert [outcome(span) for span in spans.ended()] == [("UNAVAILABLE", "UNAVAILABLE")] * 2


async def test_a_unary_call_ends(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        fake.failure = Failure(grpc.StatusCode.PERMISSION_DENIED)
        with pytest.raises(Exception, match="as scripted"):
            await client.classify("hello")
        fake.failure, fake.pieces = None, []
        with pytest.raises(ServerFault):
            await client.tokenizer_json()
        fake.silent = True
        with pytest.raises(DeadlineExceeded):
            await client.classify("hello", timeout_s=0.1)
        await fake.wait_idle()
        task = asyncio.create_task(client.classify("hello"))
        await fake.wait_active(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [outcome(span) for span in spans.ended()] == [
        ("PERMISSION_DENIED", "PERMISSION_DENIED"),
        ("INTERNAL", "INTERNAL"),
        TOO_LATE,
        GIVEN_UP,
    ]


async def test_streams_of_threads_end(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    loop = asyncio.get_running_loop()

    def use(relay: Relay) -> None:
        with Client(target, tracer_provider=spans.provider) as client:
            with client.moderate("hello") as stream:
                stream.push([BOMB, BOMB])
                while not stream.blocked:
                    next(stream)
            with pytest.raises(ZeroDivisionError), client.moderate("hello"):
                raise ZeroDivisionError
            fake.failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
            with pytest.raises(Overloaded), client.moderate("hello"):
                pass
            fake.failure = Failure(grpc.StatusCode.CANCELLED)
            with pytest.raises(Cancelled), client.moderate("hello"):
                pass
            fake.failure, fake.silent = None, True
            with pytest.raises(DeadlineExceeded), client.moderate("hello", timeout_s=0.1):
                pass
            fake.silent = False
        with pytest.raises(ValueError, match="closed"), client.moderate("hello"):
            pass
        with (
            Client(relay.target, tracer_provider=spans.provider) as client,
            client.moderate("hello") as stream,
        ):
            loop.call_soon_threadsafe(relay.cut)
            with pytest.raises(Unavailable):
                list(stream)
        fake.silent = True
        with Client(target, timeout_s=0.1, tracer_provider=spans.provider) as client:
            with pytest.raises(DeadlineExceeded, match="did not open"), client.moderate("hello"):
                pass
            with pytest.raises(DeadlineExceeded):
                client.classify("hello")

    async with Relay(target) as relay:
        await asyncio.to_thread(use, relay)
    assert [outcome(span) for span in spans.ended()] == [
        GIVEN_UP,
        GIVEN_UP,
        ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
        ("CANCELLED", "CANCELLED"),
        TOO_LATE,
        (None, "ValueError"),
        ("UNAVAILABLE", "UNAVAILABLE"),
        TOO_LATE,
        TOO_LATE,
    ]
