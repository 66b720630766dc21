"""A server that stops: what is open may end within the grace period, and is then told that it is over."""

import asyncio

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server import app
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import StartServer, failure_of
from tests.rpc.stream_call import WAIT_S


async def test_pending_tokens_are_judged_within_the_grace_period(start_server: StartServer) -> None:
    server = await start_server(grace_s=2 * WAIT_S)
    server.stream_gate.hold()
    async with server.stream() as call:
        async with server.taking(3):
            await call.send(opening(), tokens(answer_ids(5)), finish())
        stopping = asyncio.create_task(server.stop())
        await call.read_until("draining")
        server.stream_gate.release()
        received = await call.read_all()
        assert received.summary
        assert received.summary.num_tokens == 5
        await asyncio.wait_for(stopping, WAIT_S)


async def test_new_calls_are_told_to_go_elsewhere(start_server: StartServer) -> None:
    server = await start_server(grace_s=2 * WAIT_S)
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("prompt_verdict")
        stopping = asyncio.create_task(server.stop())
        await call.read_until("draining")
        async with server.stream() as refused:
            await refused.send(opening())
            failures = [await refused.failure()]
        failures.append(await server.classify_failure(pb.ClassifyRequest(messages=[user()])))
        for failure in failures:
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failure.retry_after_s == 1.0
        assert (await server.info()).load.num_sessions == 1
        assert (await call.run(tokens(answer_ids(5)))).summary
        await asyncio.wait_for(stopping, WAIT_S)


async def test_grace_period_that_is_over(start_server: StartServer) -> None:
    server = await start_server(grace_s=0.1)
    server.gen_gate.hold()
    call = asyncio.ensure_future(server.stub.Classify(pb.ClassifyRequest(messages=[user()]), timeout=WAIT_S))
    await server.gen_gate.arrival()
    async with server.stream() as stream, server.stream() as unopened:
        await stream.send(opening())
        await server.counts(num_sessions=2, num_calls=1)
        stopping = asyncio.create_task(server.stop())
        for failure in (await stream.failure(), await unopened.failure(), await failure_of(call)):
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failure.retry_after_s == 1.0
        assert stream.received.draining
    server.gen_gate.release()
    await asyncio.wait_for(stopping, WAIT_S)


async def test_stream_that_opens_late_hears_of_the_end_too(start_server: StartServer) -> None:
    server = await start_server(grace_s=2 * WAIT_S)
    async with server.stream() as other, server.stream() as late:
        await other.send(opening())
        await server.counts(num_sessions=2)
        stopping = asyncio.create_task(server.stop())
        await other.read_until("draining")
        assert (await late.run(opening())).draining
        await other.run()
        await asyncio.wait_for(stopping, WAIT_S)


async def test_device_that_hangs_does_not_keep_the_server_from_stopping(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "MIN_STALL_TIMEOUT_S", 0.2)
    server = await start_server(grace_s=0.1, max_sessions=3)  # models of its own, which nobody else is lent
    server.stream_gate.hold()
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await server.stream_gate.arrival()
        stopping = asyncio.create_task(server.stop())
        failure = await call.failure()
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await asyncio.wait_for(stopping, WAIT_S)
    assert "the device thread did not end" in caplog.text
