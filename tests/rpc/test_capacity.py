"""Limits on how much at once and for how long: sessions, time, and callers that do not read."""

import asyncio
from typing import Any

import grpc

from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.rpc.bystander import Bystander
from tests.rpc.messages import answer_ids, opening, rollback, tokens
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.scripted_model import ScriptedModel
from tests.rpc.stream_call import StreamCall


async def test_more_sessions_than_the_limit(server: RunningServer, bystander: Bystander) -> None:
    calls = [server.stream() for _ in range(server.config.max_sessions - 1)]
    for call in calls:
        await call.send(opening())
        await call.read_until("opened")
    async with server.stream() as refused:
        await refused.send(opening())
        failure = await refused.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SESSIONS")
    assert "6 streams are open, the limit" in failure.message
    assert failure.retry_after_s == 1.0

    await calls[0].run()
    async with server.stream() as call:  # a place is free as soon as a stream has ended
        assert (await call.run(opening())).summary
    for call in calls[1:]:
        assert (await call.run()).summary


async def test_call_that_sends_nothing_holds_a_place(start_server: StartServer) -> None:
    server = await start_server(max_sessions=1)
    async with server.stream() as silent:
        await server.counts(num_sessions=1)
        async with server.stream() as call:
            assert (await call.failure()).reason == "TOO_MANY_SESSIONS"
        silent.cancel()
        await server.settled()


async def test_idle_streams_end(start_server: StartServer) -> None:
    server = await start_server(idle_timeout_s=0.1)
    async with server.stream() as unopened, server.stream() as call:
        await call.send(opening(), tokens(answer_ids(3)))
        failure = await call.failure()
        assert len(call.received.verdicts) == 3
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "IDLE_TIMEOUT")
        assert "0.1 s, the limit" in failure.message
        assert (await unopened.failure()).reason == "IDLE_TIMEOUT"
    await server.settled()


async def test_stream_that_waits_for_the_server_is_not_idle(start_server: StartServer) -> None:
    server = await start_server(idle_timeout_s=0.1, max_lifetime_s=2.0)
    server.stream_gate.hold()
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(3)))
        failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "MAX_LIFETIME")
    assert "limit of 2 s" in failure.message
    server.stream_gate.release()
    await server.settled()


def narrow_channel(address: str) -> grpc.aio.Channel:
    """A connection of its own that takes little in before somebody reads; by default it is about 2 MB."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 16384),
    ]
    return grpc.aio.insecure_channel(address, options=options)


SLOW_READER_SETTINGS: dict[str, Any] = {
    "write_timeout_s": 0.3,
    "max_tokens_per_message": 512,
    "max_num_batched_tokens": 1024,
    "max_context_tokens": 8192,
}


async def test_caller_that_never_reads_is_cut_off(start_server: StartServer) -> None:
    server = await start_server(**SLOW_READER_SETTINGS)
    server.stream_gate.substitute(ScriptedModel())
    async with narrow_channel(server.address) as channel, server.stream() as other:
        await other.send(opening())
        await other.read_until("prompt_verdict")
        call = StreamCall(pb_grpc.ModerationServiceStub(channel).ModerateStream())
        await call.send(opening(), *(tokens(answer_ids(512)) for _ in range(14)))
        await server.settled(num_sessions=1)  # the session is given up while the caller still reads nothing
        failure = await call.failure()
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "WRITE_TIMEOUT")
        assert "read nothing for 0.3 s, the limit" in failure.message
        assert (await other.run(tokens(answer_ids(9)))).summary
    await server.settled()


async def test_caller_that_never_reads_is_not_listened_to(start_server: StartServer) -> None:
    server = await start_server(**SLOW_READER_SETTINGS)
    server.stream_gate.substitute(ScriptedModel())
    async with (
        narrow_channel(server.address) as channel,
        StreamCall(pb_grpc.ModerationServiceStub(channel).ModerateStream()) as call,
    ):
        await call.send(opening())
        cycle = [*(tokens(answer_ids(512)) for _ in range(14)), rollback(0)]
        pushing = asyncio.create_task(call.send(*(cycle * 40)))
        await server.counts(num_sessions=1)
        await server.counts(num_sessions=0)
        num_messages = server.num_messages
        assert num_messages < len(cycle) * 20
        await server.settled()
        assert server.num_messages == num_messages
        call.cancel()
        await asyncio.wait([pushing])
