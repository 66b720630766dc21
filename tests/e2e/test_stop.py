"""How the process starts and how it ends: the ready file, draining, the grace period, its exit status."""

import signal
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.e2e.conftest import StartProcess
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.stream_call import Failure, StreamCall

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc

LONG_S = 300.0
"""A grace period that a test would notice."""


async def test_sigterm_in_mid_stream(start_process: StartProcess, tmp_path: Path) -> None:
    server = start_process(grace_s=LONG_S, drain_delay_s=0.2)
    address = await server.ready()
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    assert [file.name for file in server.ready_file.parent.iterdir() if "ready" in file.name] == ["ready"]
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
                assert (await refused.failure()).code == grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Classify(pb.ClassifyRequest(messages=[user()]))
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
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
            failure: Failure = await call.failure()
            assert call.received.kinds[-1] == "draining"
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failure.retry_after_s
            failure = await unopened.failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert await server.ended() == 0
    assert "Traceback" not in server.errors
    assert not server.ready_file.exists()


async def test_two_servers_on_one_port_and_a_damaged_checkpoint(
    start_process: StartProcess, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    first = start_process(gen_model="none")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in checkpoints[1].iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    broken = start_process(gen_model=damaged, stream_model="none")  # both at once: it saves time
    address = await first.ready()
    second = start_process(listen=address, gen_model="none")
    assert await broken.ended() == 1
    assert_refusal(broken.errors, "model.safetensors")
    assert await second.ended() == 1
    assert_refusal(second.errors, f"listen: cannot bind {address}")
    assert not second.ready_file.exists()
    async with grpc.aio.insecure_channel(address) as channel:
        assert (await pb_grpc.ModerationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())).models
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0


def assert_refusal(errors: str, mention: str) -> None:
    """One clear line at the end, and no traceback."""
    last = errors.splitlines()[-1]
    assert last.startswith("guardwire-server: "), errors
    assert mention in last
    assert "Traceback" not in errors
