"""The Python client and its command over TLS, with and without a client certificate, against a live server."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from guardwire import AsyncClient, Client, Unavailable, tls_credentials
from guardwire.cli import main
from tests.rpc.certificates import Authority, CertificateFiles, Issued
from tests.rpc.messages import answer_ids
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S


@dataclass(frozen=True)
class ClientFiles:
    """A caller's files; without `cert` it shows no certificate."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return tls_credentials(ca_file=self.ca, cert_file=self.cert, key_file=self.key)

    @property
    def flags(self) -> list[str]:
        flags = {"--tls-ca": self.ca, "--tls-cert": self.cert, "--tls-key": self.key}
        return [str(word) for flag, path in flags.items() if path for word in (flag, path)]


@dataclass(frozen=True)
class Callers:
    """One that is let in, and those that are not, by what is wrong with them."""

    good: ClientFiles
    bad: dict[str, ClientFiles]


@pytest.fixture
async def secured(start_server: StartServer, tmp_path: Path) -> tuple[RunningServer, Callers]:
    """A server that asks for certificates, and callers of all kinds."""
    servers, clients = Authority("servers"), Authority("clients")
    files = CertificateFiles(tmp_path)
    files.write(servers.issue(), clients)

    def caller(name: str, trusted: Authority, own: Issued | None) -> ClientFiles:
        directory = tmp_path / name
        directory.mkdir()
        ca, cert, key = (directory / file for file in ("ca.crt", "tls.crt", "tls.key"))
        ca.write_bytes(trusted.certificate)
        if own is None:
            return ClientFiles(ca)
        cert.write_bytes(own.certificate)
        key.write_bytes(own.private_key)
        return ClientFiles(ca, cert, key)

    own = clients.issue("caller")
    bad = {
        "none": caller("none", servers, None),
        "other authority": caller("other", servers, Authority("others").issue("caller")),
        "expired": caller("expired", servers, clients.issue("caller", ends_in=timedelta(seconds=-1))),
        "does not trust the server": caller("distrustful", clients, own),
    }
    return await start_server(**files.settings), Callers(caller("good", servers, own), bad)


async def test_asyncio(secured: tuple[RunningServer, Callers]) -> None:
    server, callers = secured
    async with AsyncClient(server.address, credentials=callers.good.credentials, timeout_s=WAIT_S) as client:
        assert (await client.server_info()).models
        async with client.moderate("How do I bake bread?") as stream:
            await stream.push(answer_ids(5))
            await stream.finish()
            assert [update async for update in stream]
    for files in callers.bad.values():
        async with AsyncClient(server.address, credentials=files.credentials, timeout_s=WAIT_S) as client:
            with pytest.raises(Unavailable):
                await client.server_info()
            with pytest.raises(Unavailable):
                await client.moderate("How do I bake bread?")
    async with AsyncClient(server.address, timeout_s=WAIT_S) as client:
        with pytest.raises(Unavailable):
            await client.server_info()


async def test_threads(secured: tuple[RunningServer, Callers]) -> None:
    server, callers = secured

    def ask(files: ClientFiles) -> None:
        with Client(server.address, credentials=files.credentials, timeout_s=WAIT_S) as client:
            client.server_info()

    await asyncio.to_thread(ask, callers.good)
    for files in callers.bad.values():
        with pytest.raises(Unavailable):
            await asyncio.to_thread(ask, files)


async def test_command(secured: tuple[RunningServer, Callers], capsys: pytest.CaptureFixture[str]) -> None:
    server, callers = secured

    async def run(*flags: str) -> int:
        return await asyncio.to_thread(main, ["info", "--target", server.address, *flags])

    assert await run(*callers.good.flags) == 0
    assert "tiny-stream" in capsys.readouterr().out
    for flags in ([], ["--tls"], *(files.flags for files in callers.bad.values())):
        assert await run(*flags) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"guardwire: error: {server.address}: ")
        assert "UNAVAILABLE" in error
