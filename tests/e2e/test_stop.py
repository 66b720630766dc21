"""How the process starts and how it ends: the ready file, draining, the grace period, its exit status."""

import signal
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.e2e.conftest import StartProcess
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import failure_of
from tests.rpc.stream_call import StreamCall

LONG_S = 300.0
"""A grace period that a test would notice."""


async def test_second_server_on_the_port_and_sigterm_in_mid_stream(start_process: StartProcess) -> None:
    server = start_process(grace_s=LONG_S, drain_delay_s=0.2)
    address = await server.ready()
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert [file.name for file in server.ready_file.parent.iterdir() if "ready" in file.name] == ["ready"]
    second = start_process(listen=address, gen_model="none")
    assert await second.ended() == 1
    assert_refusal(second.errors, f"listen: cannot bind {address}")
    assert not second.ready_file.exists()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ModerationServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await stub.Classify(pb.ClassifyRequest(messages=[user()]))).answer
        async with StreamCall(stub.ModerateStream()) as call:
            await call.send(opening(), tokens(answer_ids(5)))
            await call.read_verdicts(5)
            server.signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await call.read_until("draining")
            assert not server.ready_file.exists()
            (draining,) = call.received.draining
            assert 0 < draining.deadline.ToNanoseconds() / 1e9 - time.time() <= LONG_S
            async with StreamCall(stub.ModerateStream()) as refused:
                await refused.send(opening())
                failure = await refused.failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
                request = pb.ClassifyRequest(messages=[user()])
                failure = await failure_of(pb_grpc.ModerationServiceStub(other).Classify(request))
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            await call.send(tokens(answer_ids(5, seed=1)), finish())
            received = await call.read_all()
        assert received.summary
        assert received.summary.num_tokens == 10
        assert await server.ended() == 0  # long before the grace period is over
    assert "Traceback" not in server.errors
    assert "stopped" in server.errors.splitlines()[-1]


async def test_sigint_and_streams_that_never_end(start_process: StartProcess) -> None:
    server = start_process(grace_s=0.3, drain_delay_s=0)
    address = await server.ready()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ModerationServiceStub(channel)
        async with StreamCall(stub.ModerateStream()) as call, StreamCall(stub.ModerateStream()) as unopened:
            await call.send(opening(), tokens(answer_ids(5)))
            await call.read_verdicts(5)
            while (await stub.GetServerInfo(pb.GetServerInfoRequest())).load.num_sessions < 2:
                pass
            server.signal(signal.SIGINT)
            failure = await call.failure()
            assert call.received.kinds[-1] == "draining"
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failure.retry_after_s
            failure = await unopened.failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await server.ended() == 0
    assert "Traceback" not in server.errors
    assert not server.ready_file.exists()


def assert_refusal(errors: str, mention: str) -> None:
    """One clear line at the end, and no traceback."""
    last = errors.splitlines()[-1]
    assert last.startswith("guardwire-server: "), errors
    assert mention in last
    assert "Traceback" not in errors
