"""What the command says when a handshake fails; each of these is what gRPC really says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from tests.clients.command import run_main
from tests.clients.fake_server import FakeServer
from tests.rpc.certificates import Authority, Issued

TRUSTED = Authority("trusted")
OTHER = Authority("other")

WANTS_TLS = "Does the server want TLS (--tls, --tls-ca), and a client certificate (--tls-cert, --tls-key)?"
WANTS_CERTIFICATE = "Does the server want a client certificate (--tls-cert, --tls-key)?"
WANTS_ANOTHER = "Does the server trust the authority of the client certificate (--tls-cert), and is it still valid?"
SPEAKS_NO_TLS = "The server does not speak TLS: leave out --tls and its files."
IS_NOT_TRUSTED = "The server's certificate is not from the authorities that are trusted here (--tls-ca)."

StartServer = Callable[[grpc.ServerCredentials | None], Awaitable[str]]


@dataclass(frozen=True)
class Files:
    """PEM files of callers, in a directory of the test's own."""

    directory: Path

    def ca(self, authority: Authority) -> list[str]:
        """The flags by which an authority is trusted."""
        return ["--tls-ca", self._write("ca.crt", authority.certificate)]

    def certificate(self, issued: Issued) -> list[str]:
        """The flags by which a certificate is shown."""
        key = self._write("tls.key", issued.private_key)
        return ["--tls-cert", self._write("tls.crt", issued.certificate), "--tls-key", key]

    def _write(self, name: str, content: bytes) -> str:
        path = self.directory / name
        path.write_bytes(content)
        return str(path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def start() -> AsyncIterator[StartServer]:
    servers = []

    async def start_server(credentials: grpc.ServerCredentials | None) -> str:
        fake = FakeServer()
        servers.append(await fake.start(credentials))
        return fake.target

    yield start_server
    for server in servers:
        await server.stop(None)


def credentials(*, clients: Authority | None = None, server: Issued | None = None) -> grpc.ServerCredentials:
    own = server or TRUSTED.issue()
    authority = clients.certificate if clients else None
    return grpc.ssl_server_credentials(
        [(own.private_key, own.certificate)], authority, require_client_auth=clients is not None
    )


async def error_of(target: str, *flags: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert await run_main("info", *flags, target=target) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"guardwire: error: {target}: ")
    return error


async def test_caller_without_tls(start: StartServer, capsys: pytest.CaptureFixture[str]) -> None:
    for server in (credentials(), credentials(clients=TRUSTED)):
        assert (await error_of(await start(server), capsys=capsys)).endswith(f"(UNAVAILABLE). {WANTS_TLS}\n")


async def test_caller_whose_certificate_is_missing_or_wrong(
    start: StartServer, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    target = await start(credentials(clients=TRUSTED))
    trusted = files.ca(TRUSTED)
    assert (await error_of(target, *trusted, capsys=capsys)).endswith(f"(UNAVAILABLE). {WANTS_CERTIFICATE}\n")
    for own in (OTHER.issue("caller"), TRUSTED.issue("caller", ends_in=timedelta(seconds=-1))):
        flags = files.certificate(own)
        assert (await error_of(target, *trusted, *flags, capsys=capsys)).endswith(f"(UNAVAILABLE). {WANTS_ANOTHER}\n")
    assert await run_main("info", *trusted, *files.certificate(TRUSTED.issue("caller")), target=target) == 0


async def test_server_without_tls(start: StartServer, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    target = await start(None)
    for flags in (["--tls"], files.ca(TRUSTED)):
        assert (await error_of(target, *flags, capsys=capsys)).endswith(f"(UNAVAILABLE). {SPEAKS_NO_TLS}\n")


async def test_server_that_is_not_trusted(start: StartServer, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    target = await start(credentials())
    for flags in (["--tls"], files.ca(OTHER)):
        assert (await error_of(target, *flags, capsys=capsys)).endswith(f"(UNAVAILABLE). {IS_NOT_TRUSTED}\n")


async def test_server_whose_certificate_has_expired(
    start: StartServer, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    target = await start(credentials(server=TRUSTED.issue(ends_in=timedelta(seconds=-1))))
    error = await error_of(target, *files.ca(TRUSTED), capsys=capsys)
    assert "certificate has expired" in error
    assert error.endswith("(UNAVAILABLE)\n")


async def test_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert (await error_of("localhost:1", capsys=capsys)).endswith("Connection refused (UNAVAILABLE)\n")
