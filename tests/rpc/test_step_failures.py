"""A step that fails costs the streams of that step and no others; a device that keeps failing is given up."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.messages import answer_ids, opening, tokens, user
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S


async def test_failed_step(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    async with server.stream() as other, server.stream() as first, server.stream() as second:
        for call in (other, first, second):
            await call.send(opening())
            await call.read_until("prompt_verdict")
        server.stream_gate.hold()
        await first.send(tokens(answer_ids(5)))
        await server.stream_gate.arrival()
        async with server.taking(2):
            await first.send(tokens(answer_ids(5)))
            await second.send(tokens(answer_ids(5)))
        server.stream_gate.fail()  # the step that is held has `first` alone in it
        server.stream_gate.release()
        failure = await first.failure()
        assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
        assert failure.request_id
        assert failure.request_id in failure.message
        assert failure.request_id in caplog.text
        assert "fire" not in failure.message  # the device's own words stay in the log
        assert "fire" in caplog.text
        assert len((await second.run()).verdicts) == 5
        assert (await other.run(tokens(answer_ids(5)))).summary
    async with server.stream() as call:
        assert (await call.run(opening(), tokens(answer_ids(5)))).summary
    await server.settled()


async def test_streams_of_one_failed_step_share_a_request_id(server: RunningServer) -> None:
    async with server.stream() as blocker, server.stream() as first, server.stream() as second:
        for call in (blocker, first, second):
            await call.send(opening())
            await call.read_until("prompt_verdict")
        server.stream_gate.hold()
        await blocker.send(tokens(answer_ids(5)))
        await server.stream_gate.arrival()
        async with server.taking(2):
            await first.send(tokens(answer_ids(5)))
            await second.send(tokens(answer_ids(5)))
        server.stream_gate.fail(after=1)
        server.stream_gate.release()
        failures = [await first.failure(), await second.failure()]
        assert (await blocker.run()).summary
    assert failures[0].request_id == failures[1].request_id != ""
    await server.settled()


async def test_verdicts_of_earlier_steps_come_before_the_failure(server: RunningServer) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await call.read_verdicts(5)
        server.stream_gate.fail()
        await call.send(tokens(answer_ids(5)))
        assert (await call.failure()).reason == "STEP_FAILED"
    assert len(call.received.verdicts) == 5


async def test_two_failures_and_a_success_are_not_the_device(server: RunningServer) -> None:
    for _ in range(2):
        server.stream_gate.fail(2)
        for _ in range(2):
            async with server.stream() as call:
                await call.send(opening())
                assert (await call.failure()).reason == "STEP_FAILED"
        async with server.stream() as call:
            assert (await call.run(opening())).summary


async def test_three_failures_in_a_row_are_the_device(server: RunningServer) -> None:
    async with server.stream() as idle:
        await idle.send(opening())
        await idle.read_until("prompt_verdict")
        server.stream_gate.fail(3)
        for _ in range(3):
            async with server.stream() as call:
                await call.send(opening())
                assert (await call.failure()).reason == "STEP_FAILED"
        failure = await idle.failure()  # it was in none of these steps, but nothing will be judged any more
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    async with server.stream() as call:
        await call.send(opening())
        failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    refused = await server.classify_failure(pb.ClassifyRequest(messages=[user()]))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    assert (await server.info()).load.num_sessions == 0
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    while (await watch.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
        pass
