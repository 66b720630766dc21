"""A step that fails costs the streams of that step and no others; a device that keeps failing is given up."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc.health import LIVENESS, READINESS
from tests.rpc.health_calls import NOT_SERVING, SERVING, Watch, check
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import WAIT_S

CLASSIFY = pb.ClassifyRequest(messages=[user()])


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


async def test_failed_step_of_many_streams_on_one_call(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    async with ManyCall(server) as call, server.stream() as other:
        await other.send(opening())
        await other.read_until("prompt_verdict")
        await call.send((1, opening()), (2, opening()), (3, opening()))
        await call.send_step((1, 4), (2, 4), (3, 4))  # when these are judged, nothing of the prompts is left to read
        await call.read_until(lambda: all(call.has_verdicts(number, 1)() for number in (1, 2, 3)))
        server.stream_gate.fail()
        await call.send_step((1, 5), (2, 6))
        await call.read_until(call.has_ended(1, 2))
        first, second = call.errors[1], call.errors[2]
        assert (first.code, first.reason) == (grpc.StatusCode.INTERNAL.value[0], "STEP_FAILED")
        assert first.request_id == second.request_id != ""
        assert first.request_id in caplog.text
        await call.send((3, tokens(answer_ids(5))), (3, finish()), (4, opening()), (4, finish()))
        await call.read_until(call.has_ended(3, 4))
        assert not {3, 4} & call.errors.keys()
        assert len(call.received[3].verdicts) == 6
        assert (await other.run(tokens(answer_ids(5)))).summary
    await server.settled()


async def test_failed_steps_of_classify_calls(start_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """Calls of one step share the fault and its name; the ones after it, and all streams, go on."""
    server = await start_server(max_classify_calls=3, max_num_batched_tokens=1024)
    async with server.stream() as stream:
        await stream.send(opening())
        await stream.read_until("prompt_verdict")
        server.gen_gate.hold()
        calls = [asyncio.ensure_future(server.stub.Classify(CLASSIFY))]
        await server.gen_gate.arrival()
        calls += [asyncio.ensure_future(server.stub.Classify(CLASSIFY)) for _ in range(2)]
        await server.counts(num_sessions=1, num_calls=3)
        server.gen_gate.fail(2)  # the step that is held has the first call alone in it, the next one the others
        server.gen_gate.release()
        failures = [await failure_of(call) for call in calls]
        for failure in failures:
            assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
            assert failure.request_id
            assert failure.request_id in caplog.text
        assert failures[0].request_id != failures[1].request_id == failures[2].request_id
        assert (await server.stub.Classify(CLASSIFY)).answer
        assert (await stream.run(tokens(answer_ids(5)))).summary
    await server.settled()


async def test_failed_step_leaves_health_alone(server: RunningServer) -> None:
    async with Watch(server) as whole, Watch(server, LIVENESS) as liveness:
        assert await whole.next_status() == await liveness.next_status() == SERVING
        server.stream_gate.fail()
        server.gen_gate.fail()
        async with server.stream() as call:
            await call.send(opening())
            assert (await call.failure()).reason == "STEP_FAILED"
        assert (await server.classify_failure(CLASSIFY)).reason == "STEP_FAILED"
        assert [await check(server, name) for name in ("", READINESS, LIVENESS)] == [SERVING] * 3
        server.stream_gate.fail(fault=SystemExit)  # whatever they are told next is news: that the device is lost
        async with server.stream() as call:
            await call.send(opening())
            await call.failure()
        assert await whole.next_status() == await liveness.next_status() == NOT_SERVING


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
    refused = await server.classify_failure(CLASSIFY)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    assert (await server.info()).load.num_sessions == 0
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    while (await watch.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
        pass
