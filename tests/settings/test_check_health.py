"""`guardwire-server health`: what it says of a server that does not answer as it should."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from guardwire_server.check_health import check_health
from guardwire_server.rpc.health import HealthServicer
from tests.rpc.certificates import Authority, CertificateFiles

TIMEOUT_S = 20.0

HINT = "; does it want TLS, which this check does not speak? health_listen has none"


@contextlib.asynccontextmanager
async def serving(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[str]:
    """The address of a server with nothing but health."""
    server = grpc.aio.server()
    servicer = HealthServicer(["one"])
    servicer.set(is_ready=True, is_alive=True)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    anywhere = "127.0.0.1:0"
    port = server.add_secure_port(anywhere, credentials) if credentials else server.add_insecure_port(anywhere)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture
def credentials(tmp_path: Path) -> grpc.ServerCredentials:
    authority, files = Authority("servers"), CertificateFiles(tmp_path)
    files.write(authority.issue(), authority)
    key, chain = (Path(str(files.settings[name])).read_bytes() for name in ("tls_key", "tls_cert"))
    return grpc.ssl_server_credentials([(key, chain)])


async def test_a_server_that_wants_tls(credentials: grpc.ServerCredentials, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(credentials) as address:
        assert await asyncio.to_thread(check_health, address, "readiness", TIMEOUT_S) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{address}: UNAVAILABLE: ")
    assert printed.err.endswith(f"{HINT}\n")
    assert printed.out == ""


async def test_a_service_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as address:
        assert await asyncio.to_thread(check_health, address, "livenes", TIMEOUT_S) == 1
        told = "NOT_FOUND: there is no service 'livenes'; there are liveness, one, readiness"
        assert capsys.readouterr().err == f"{address}: {told}\n"
        assert await asyncio.to_thread(check_health, address, "liveness", TIMEOUT_S) == 0


def test_nobody_there_is_no_matter_of_tls(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert check_health(address, "readiness", TIMEOUT_S) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"{address}: UNAVAILABLE: ")
    assert "TLS" not in told
