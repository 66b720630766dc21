"""grpc.health.v1: what it says of a device that works, hangs, goes on and dies, by Check and by Watch."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc import health
from guardwire_server.rpc.server import SERVICES
from tests.rpc.health_calls import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Watch, check
from tests.rpc.messages import answer_ids, opening, tokens, user
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import WAIT_S

STALL_TIMEOUT_S = 0.3


def test_services() -> None:
    assert "guardwire.v1.ModerationService" in SERVICES
    assert "grpc.health.v1.Health" in SERVICES


@pytest.mark.parametrize("service", ["", *SERVICES, health.READINESS, health.LIVENESS])
async def test_serving(server: RunningServer, service: str) -> None:
    assert await check(server, service) == SERVING
    async with Watch(server, service) as watch:
        assert await watch.next_status() == SERVING


async def test_unknown_service(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    failure = await failure_of(stub.Check(health_pb2.HealthCheckRequest(service="guardwire.v2.Nothing")))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    assert "guardwire.v1.ModerationService" in failure.message
    async with Watch(server, "guardwire.v2.Nothing") as watch:  # the protocol: it may become known
        assert await watch.next_status() == SERVICE_UNKNOWN


async def test_hanging_step(start_server: StartServer) -> None:
    server = await start_server(stall_timeout_s=STALL_TIMEOUT_S)
    async with Watch(server) as watch, Watch(server, SERVICES[0]) as service_watch, server.stream() as call:
        assert await watch.next_status() == await service_watch.next_status() == SERVING
        server.stream_gate.hold()
        began_s = asyncio.get_running_loop().time()
        await call.send(opening(), tokens(answer_ids(5)))
        assert await watch.next_status() == NOT_SERVING
        # The stall timeout, the interval at which the monitor looks, and 2 s for a busy machine.
        assert asyncio.get_running_loop().time() - began_s < STALL_TIMEOUT_S + 0.5 + 2
        assert await service_watch.next_status() == NOT_SERVING
        assert await check(server) == NOT_SERVING
        server.stream_gate.release()
        assert await watch.next_status() == SERVING
        assert await service_watch.next_status() == SERVING
        assert len((await call.run()).verdicts) == 5


async def test_device_that_hangs_without_traffic(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start_server(stall_timeout_s=STALL_TIMEOUT_S)
    monkeypatch.setattr(health, "PROBE_INTERVAL_S", 0.0)
    async with Watch(server) as watch:
        assert await watch.next_status() == SERVING
        server.stream_gate.hold()
        assert await watch.next_status() == NOT_SERVING
        server.stream_gate.release()
        assert await watch.next_status() == SERVING


async def test_failing_probe(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await start_server(stall_timeout_s=STALL_TIMEOUT_S)
    monkeypatch.setattr(health, "PROBE_INTERVAL_S", 0.0)
    async with Watch(server) as watch:
        assert await watch.next_status() == SERVING
        server.stream_gate.fail()
        assert await watch.next_status() == NOT_SERVING
        assert await watch.next_status() == SERVING


async def test_hanging_classify_step(start_server: StartServer) -> None:
    server = await start_server(stall_timeout_s=STALL_TIMEOUT_S, stream_model="none")
    async with Watch(server) as watch:
        assert await watch.next_status() == SERVING
        server.gen_gate.hold()
        call = asyncio.ensure_future(server.stub.Classify(pb.ClassifyRequest(messages=[user()])))
        assert await watch.next_status() == NOT_SERVING
        server.gen_gate.release()
        assert await watch.next_status() == SERVING
        assert (await call).model == "tiny-gen"


async def test_dead_device_thread(server: RunningServer) -> None:
    async with Watch(server) as watch, server.stream() as call:
        assert await watch.next_status() == SERVING
        server.stream_gate.fail(fault=SystemExit)  # not an Exception: the thread ends
        await call.send(opening())
        failure = await call.failure()
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
        assert await watch.next_status() == NOT_SERVING
    assert await check(server, SERVICES[0]) == NOT_SERVING


async def test_watchers_do_not_disturb_each_other(start_server: StartServer) -> None:
    server = await start_server(stall_timeout_s=STALL_TIMEOUT_S)
    async with Watch(server) as watch:
        async with Watch(server) as other:
            assert await watch.next_status() == await other.next_status() == SERVING
        assert await other.code() == grpc.StatusCode.CANCELLED
        async with Watch(server) as late:
            assert await late.next_status() == SERVING
        server.stream_gate.hold()
        async with server.stream() as call:
            await call.send(opening())
            assert await watch.next_status() == NOT_SERVING
        server.stream_gate.release()
        assert await watch.next_status() == SERVING


async def test_watchers_hear_of_the_end_and_do_not_delay_it(start_server: StartServer) -> None:
    # Without a delay the call's end comes at once behind the status, and a grpc.aio caller that has heard of the one
    # may not be given the other any more.
    server = await start_server(grace_s=3 * WAIT_S, drain_delay_s=0.5)
    async with Watch(server) as watch, Watch(server, "guardwire.v2.Nothing") as unknown:
        assert await watch.next_status() == SERVING
        assert await unknown.next_status() == SERVICE_UNKNOWN
        stopping = asyncio.create_task(server.stop())
        assert await watch.next_status() == NOT_SERVING
        await asyncio.wait_for(stopping, WAIT_S)
        assert await watch.code() == grpc.StatusCode.UNAVAILABLE
