"""A server that is stopped or killed under load: nobody loses what was pushed in time, and nothing hangs."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire import AsyncClient, Client, Unavailable
from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.e2e.conftest import StartProcess
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import failure_of
from tests.rpc.stream_call import WAIT_S, Received, StreamCall

if TYPE_CHECKING:
    Stub = pb_grpc.ModerationServiceAsyncStub

Many = grpc.aio.StreamStreamCall[pb.ModerateStreamsRequest, pb.ModerateStreamsResponse]

NUM_STREAMS = 50
NUM_CHANNELS = 5
TOKENS_PER_PUSH = 8
MAX_TOKENS = 400
"""What a stream pushes at most, which its context still holds."""

MAX_UNJUDGED = 64
"""How far a stream runs ahead of its verdicts: so much is under way when the server is told to stop."""

GRACE_S = 60.0
DRAIN_DELAY_S = 0.5


@contextlib.asynccontextmanager
async def connected(address: str, num_channels: int = 1) -> AsyncIterator["list[Stub]"]:
    """Stubs with a connection each."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with contextlib.AsyncExitStack() as channels:
        yield [
            pb_grpc.ModerationServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            )
            for _ in range(num_channels)
        ]


@dataclass
class Writer:
    """A caller whose model writes on and on, until it hears that the server drains; then it finishes."""

    call: StreamCall
    number: int
    is_busy: asyncio.Event = field(default_factory=asyncio.Event)  # once some verdicts have come
    may_finish: asyncio.Event = field(default_factory=asyncio.Event)
    num_pushed: int = 0
    num_pushed_before: int = 0  # before it heard
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Received:
        """Writes and reads to the stream's end."""
        await self.call.send(opening([user(f"Question number {self.number}?")]))
        pushing = asyncio.create_task(self._push())
        while (kind := await self.call.read()) is not None:
            if len(self.call.received.verdicts) > TOKENS_PER_PUSH:
                self.is_busy.set()
            if kind == "draining":
                self.num_pushed_before = self.num_pushed
            self._changed.set()
        await pushing
        return self.call.received

    async def _push(self) -> None:
        ids = answer_ids(MAX_TOKENS, seed=self.number)
        received = self.call.received
        while not received.draining:
            if self.num_pushed == MAX_TOKENS or self.num_pushed - len(received.verdicts) > MAX_UNJUDGED:
                self._changed.clear()
                await self._changed.wait()
                continue
            await self.call.send(tokens(ids[self.num_pushed : self.num_pushed + TOKENS_PER_PUSH]))
            self.num_pushed += TOKENS_PER_PUSH
        await self.may_finish.wait()
        await self.call.send(finish())


async def test_sigterm_under_fifty_streams(start_process: StartProcess) -> None:
    server = start_process(max_sessions=NUM_STREAMS + 1, grace_s=GRACE_S, drain_delay_s=DRAIN_DELAY_S)
    address = await server.ready()
    async with connected(address, NUM_CHANNELS) as stubs, contextlib.AsyncExitStack() as calls:
        writers = []
        for number in range(NUM_STREAMS):
            call = await calls.enter_async_context(StreamCall(stubs[number % NUM_CHANNELS].ModerateStream()))
            writers.append(Writer(call, number))
        running = [asyncio.create_task(writer.run()) for writer in writers]
        await asyncio.gather(*(writer.is_busy.wait() for writer in writers))
        idle = await idle_call(stubs[0])
        server.signal(signal.SIGTERM)
        told_s = time.monotonic()
        for writer in writers[1:]:
            writer.may_finish.set()
        results = await asyncio.gather(*running[1:])  # the first stays, so that there is somebody to wait for
        async with connected(address) as (latecomer,):
            await assert_refused(latecomer)
        await assert_refused(stubs[0])
        writers[0].may_finish.set()
        results.append(await running[0])
        failure = await failure_of(read_to_the_end(idle))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await server.ended() == 0
        assert time.monotonic() - told_s < DRAIN_DELAY_S + GRACE_S
    for writer, received in zip((*writers[1:], writers[0]), results, strict=True):
        assert len(received.draining) == 1
        assert 0 < writer.num_pushed_before <= writer.num_pushed
        assert [verdict.index for verdict in received.verdicts] == list(range(writer.num_pushed))
        assert received.summary
        assert received.summary.num_tokens == writer.num_pushed
    assert "Traceback" not in server.errors


async def assert_refused(stub: "Stub") -> None:
    """New streams and calls are told to go elsewhere, and when that may help."""
    async with StreamCall(stub.ModerateStream()) as call:
        await call.send(opening())
        failures = [await call.failure()]
    failures.append(await failure_of(stub.Classify(pb.ClassifyRequest(messages=[user()]), timeout=WAIT_S)))
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert failure.retry_after_s
    many = stub.ModerateStreams(timeout=WAIT_S)
    await many.write(pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=1, request=opening())]))
    response = await many.read()
    assert isinstance(response, pb.ModerateStreamsResponse)
    (refused,) = response.responses
    assert (refused.error.code, refused.error.reason) == (grpc.StatusCode.UNAVAILABLE.value[0], "DRAINING")
    many.cancel()


async def idle_call(stub: "Stub") -> Many:
    """A call for many streams that has none any more."""
    call = stub.ModerateStreams()
    await call.write(pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=1, request=opening())]))
    await call.write(pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=1, request=finish())]))
    while not any(item.response.HasField("summary") for item in (await many_response(call)).responses):
        pass
    return call


async def many_response(call: Many) -> pb.ModerateStreamsResponse:
    response = await asyncio.wait_for(call.read(), WAIT_S)
    assert isinstance(response, pb.ModerateStreamsResponse)
    return response


async def test_sigkill_and_restart_on_the_same_port(start_process: StartProcess) -> None:
    server = start_process(grace_s=GRACE_S)
    address = await server.ready()
    served = asyncio.Event()
    clients = asyncio.create_task(served_by_the_killed(address, served))
    async with connected(address) as (stub,), contextlib.AsyncExitStack() as streams:
        calls = [await streams.enter_async_context(StreamCall(stub.ModerateStream())) for _ in range(NUM_STREAMS)]
        for number, call in enumerate(calls):
            await call.send(opening(), tokens(answer_ids(5, seed=number)))
        await asyncio.gather(*(call.read_verdicts(5) for call in calls))
        many = stub.ModerateStreams()
        await many.write(pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=1, request=opening())]))
        await many_response(many)
        async with grpc.aio.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            await served.wait()
            server.signal(signal.SIGKILL)
            failures = await asyncio.gather(*(call.failure() for call in calls))
            failures += [await failure_of(watch.read()), await failure_of(read_to_the_end(many))]
        assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
        await clients
        assert await server.ended() == -signal.SIGKILL
        failure = await failure_of(stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S))
        assert failure.code is grpc.StatusCode.UNAVAILABLE

        again = start_process(listen=address)
        assert await again.ready() == address
        # The connection comes back by itself; after refusals it waits a little before it tries again.
        async with StreamCall(stub.ModerateStream(wait_for_ready=True)) as call:
            assert len((await call.run(opening(), tokens(answer_ids(5)))).verdicts) == 5


async def read_to_the_end(call: Many) -> None:
    while await asyncio.wait_for(call.read(), WAIT_S) is not grpc.aio.EOF:
        pass


async def served_by_the_killed(address: str, served: asyncio.Event) -> None:
    """Streams of both clients: what waits for updates, and what pushes later, learns that the server is gone."""
    opened = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_in_a_thread() -> None:
        with Client(address) as client, client.moderate("How do I bake bread?") as stream:
            stream.push(answer_ids(5))
            loop.call_soon_threadsafe(opened.set)
            for _ in stream:
                pass

    async with AsyncClient(address) as client, asyncio.timeout(WAIT_S):
        in_thread = asyncio.create_task(asyncio.to_thread(wait_in_a_thread))
        many = client.moderate_many()
        async with client.moderate("How do I bake bread?") as stream, many:
            one_of_many = await many.moderate("How do I bake bread?")
            await stream.push(answer_ids(5))
            await opened.wait()
            served.set()
            for broken in (stream, one_of_many):
                with pytest.raises(Unavailable):
                    async for _ in broken:
                        pass
                with pytest.raises(Unavailable):
                    await broken.push(answer_ids(5))
        with pytest.raises(Unavailable):
            await in_thread
