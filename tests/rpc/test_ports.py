"""What is served where: the second port for health, channelz, and addresses that are taken."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.check_health import check_health, own_target
from guardwire_server.config import ServerConfig
from guardwire_server.core.errors import StartupError
from guardwire_server.rpc.health import LIVENESS, READINESS
from guardwire_server.rpc.server import CHANNELZ_SERVICE, check_address
from tests.rpc.certificates import Authority, CertificateFiles, client_credentials
from tests.rpc.health_calls import SERVING
from tests.rpc.messages import opening
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import WAIT_S

HEALTH_LISTEN = "127.0.0.1:0"


@pytest.fixture
def taken_address() -> Iterator[str]:
    """Where somebody listens already."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def asked(target: str, service: str = "", timeout_s: float = WAIT_S) -> int:
    """The exit status of the health command; it blocks, and the server runs on this event loop."""
    return await asyncio.to_thread(check_health, target, service, timeout_s)


async def test_health_without_tls_beside_a_server_with_it(start_server: StartServer, tmp_path: Path) -> None:
    authority, files = Authority("servers"), CertificateFiles(tmp_path)
    files.write(authority.issue(), Authority("clients"))
    server = await start_server(**files.settings, health_listen=HEALTH_LISTEN)
    assert server.health_address != server.address
    async with grpc.aio.insecure_channel(server.health_address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", READINESS, LIVENESS):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await health.Check(request, timeout=WAIT_S)).status == SERVING
            assert (await health.Watch(request).read()).status == SERVING
        moderation = pb_grpc.ModerationServiceStub(channel)
        for call in (
            moderation.Classify(pb.ClassifyRequest()),
            moderation.GetServerInfo(pb.GetServerInfoRequest()),
            moderation.ModerateStream().read(),
        ):
            assert (await failure_of(call)).code is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.secure_channel(server.address, client_credentials(authority)) as channel:
        call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert (await failure_of(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_health_port_speaks_to_the_end(start_server: StartServer) -> None:
    server = await start_server(health_listen=HEALTH_LISTEN, grace_s=2 * WAIT_S)
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("prompt_verdict")
        stopping = asyncio.create_task(server.stop())
        await call.read_until("draining")
        assert [await asked(server.health_address, name) for name in ("", READINESS, LIVENESS)] == [1, 1, 0]
        await call.run()
    await asyncio.wait_for(stopping, WAIT_S)
    assert await asked(server.health_address, LIVENESS, 1.0) == 1


async def test_health_port_that_is_taken(start_server: StartServer, taken_address: str) -> None:
    with pytest.raises(StartupError, match=f"health_listen: cannot bind {taken_address}"):
        await start_server(health_listen=taken_address)
    with pytest.raises(StartupError, match=f"health_listen: cannot bind {taken_address}"):
        check_address(taken_address, "health_listen")


async def test_health_command(server: RunningServer, capsys: pytest.CaptureFixture[str], taken_address: str) -> None:
    assert await asked(server.address) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert await asked(server.address, "nobody") == 1
    assert f"{server.address}: NOT_FOUND: " in capsys.readouterr().err
    server.stream_gate.fail(3)
    for _ in range(3):
        async with server.stream() as call:
            await call.send(opening())
            await call.failure()
    async with asyncio.timeout(WAIT_S):
        while await asked(server.address, LIVENESS) == 0:
            pass
    assert capsys.readouterr().out.endswith("NOT_SERVING\n")
    assert await asked(taken_address, timeout_s=0.2) == 1  # somebody listens and says nothing
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, "127.0.0.1:50051"),
        ({"listen": "0.0.0.0:7000", "allow_insecure": True}, "127.0.0.1:7000"),
        ({"listen": "[::]:7000", "allow_insecure": True}, "[::1]:7000"),
        ({"listen": "localhost:7000", "health_listen": "0.0.0.0:7001"}, "127.0.0.1:7001"),
        ({"tls_cert": "c", "tls_key": "k", "health_listen": "10.0.0.1:7001"}, "10.0.0.1:7001"),
    ],
)
def test_where_the_health_command_asks(settings: dict[str, str], target: str) -> None:
    assert own_target(ServerConfig.model_validate(settings)) == target


@pytest.mark.parametrize(
    ("settings", "mention"),
    [({"tls_cert": "c", "tls_key": "k"}, "health_listen: not set"), ({"listen": "127.0.0.1:0"}, "--target")],
)
def test_where_the_health_command_cannot_ask(settings: dict[str, str], mention: str) -> None:
    with pytest.raises(StartupError, match=mention):
        own_target(ServerConfig.model_validate(settings))


def test_health_command_leaves_the_model_libraries_alone() -> None:
    program = (
        "import sys, guardwire_server.check_health; print(sorted({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize("has_channelz", [True, False])
async def test_channelz(start_server: StartServer, has_channelz: bool) -> None:
    server = await start_server(channelz=has_channelz)
    call = channelz_pb2_grpc.ChannelzStub(server.channel).GetServers(channelz_pb2.GetServersRequest(), timeout=WAIT_S)
    if has_channelz:
        assert any(shown.listen_socket for shown in (await call).server)
    else:
        assert (await failure_of(call)).code is grpc.StatusCode.UNIMPLEMENTED
    assert CHANNELZ_SERVICE == "grpc.channelz.v1.Channelz"
