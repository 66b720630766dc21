"""TLS over a live server: who is let in, and what changes for whom when certificates are replaced."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc.experimental.session_cache import ssl_session_cache_lru

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server import reloading
from tests.rpc.certificates import LIFETIME, Authority, CertificateFiles, Issued, client_credentials, shown_certificate
from tests.rpc.messages import answer_ids, opening, tokens
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import WAIT_S, StreamCall

RELOAD_INTERVAL_S = 0.05

TAKEN = "tls_cert: reloaded"

REFUSED = grpc.StatusCode.UNAVAILABLE
"""How a handshake that fails looks to a caller, whatever was wrong."""


@pytest.fixture(scope="module")
def servers() -> Authority:
    """Whom clients trust."""
    return Authority("servers")


@pytest.fixture(scope="module")
def clients() -> Authority:
    """Whose client certificates are let in."""
    return Authority("clients")


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return CertificateFiles(tmp_path)


async def start(start_server: StartServer, files: CertificateFiles) -> RunningServer:
    return await start_server(**files.settings, reload_interval_s=RELOAD_INTERVAL_S)


@contextlib.asynccontextmanager
async def connection(
    server: RunningServer, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator["pb_grpc.ModerationServiceAsyncStub"]:
    """A connection of its own to a server; without credentials in plain text."""
    options = [("grpc.use_local_subchannel_pool", 1), *options]
    if credentials is None:
        channel = grpc.aio.insecure_channel(server.address, options=options)
    else:
        channel = grpc.aio.secure_channel(server.address, credentials, options=options)
    async with channel:
        yield pb_grpc.ModerationServiceStub(channel)


async def is_let_in(
    server: RunningServer, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]] = ()
) -> bool:
    """Whether a new connection serves a call; if not, it must fail as every handshake does."""
    async with connection(server, credentials, options) as stub:
        call = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)
        code = await call.code()
    assert code in (grpc.StatusCode.OK, REFUSED)
    return code is grpc.StatusCode.OK


async def shows(server: RunningServer, issued: Issued) -> bool:
    """Whether new connections are shown that certificate."""
    return await asyncio.to_thread(shown_certificate, server.address) == issued.certificate


class Reloads(logging.Handler):
    """What the server says of the files that it looks at again."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put_nowait(record.getMessage())  # the reloader speaks on the event loop

    async def said(self, text: str) -> None:
        """Waits until the server has said so; a file that is seen half written makes it say something else before."""
        async with asyncio.timeout(WAIT_S):
            while text not in await self._messages.get():
                pass


@pytest.fixture
def reloads(caplog: pytest.LogCaptureFixture) -> Iterator[Reloads]:
    caplog.set_level(logging.INFO)
    handler = Reloads()
    reloading.logger.addHandler(handler)
    yield handler
    reloading.logger.removeHandler(handler)


async def test_server_with_a_certificate(
    start_server: StartServer, files: CertificateFiles, servers: Authority
) -> None:
    files.write(servers.issue())
    server = await start(start_server, files)
    assert await is_let_in(server, client_credentials(servers))
    assert not await is_let_in(server, client_credentials(Authority("servers")))  # by the same name
    assert not await is_let_in(server, None)
    async with connection(server, client_credentials(servers)) as stub, StreamCall(stub.ModerateStream()) as call:
        assert len((await call.run(opening(), tokens(answer_ids(5)))).verdicts) == 5


async def test_who_is_let_in_where_clients_need_a_certificate(
    start_server: StartServer, files: CertificateFiles, servers: Authority, clients: Authority
) -> None:
    files.write(servers.issue(), clients)
    server = await start(start_server, files)
    good = client_credentials(servers, clients.issue("caller"))
    for bad in (
        None,
        client_credentials(servers),
        client_credentials(servers, Authority("clients").issue("caller")),
        client_credentials(servers, servers.issue("caller")),
        client_credentials(servers, clients.issue("caller", ends_in=timedelta(seconds=-1))),
        client_credentials(servers, clients.issue("caller", begins_in=timedelta(days=1))),
        client_credentials(servers, Issued(clients.issue("caller").certificate, clients.issue("caller").private_key)),
    ):
        assert not await is_let_in(server, bad)
        assert await is_let_in(server, good)


async def test_every_call_is_refused_without_a_client_certificate(
    start_server: StartServer, files: CertificateFiles, servers: Authority, clients: Authority
) -> None:
    files.write(servers.issue(), clients)
    server = await start(start_server, files)
    async with connection(server, client_credentials(servers)) as stub:
        for call in (
            stub.Classify(pb.ClassifyRequest()),
            stub.GetServerInfo(pb.GetServerInfoRequest()),
            stub.GetTokenizer(pb.GetTokenizerRequest()).read(),
            stub.ModerateStream().read(),
            stub.ModerateStreams().read(),
        ):
            assert (await failure_of(call)).code is REFUSED


async def test_rotated_server_certificate(
    start_server: StartServer, files: CertificateFiles, servers: Authority, reloads: Reloads
) -> None:
    files.write(servers.issue())
    server = await start(start_server, files)
    successor = Authority("successor")
    rotated = successor.issue()
    old, new = client_credentials(servers), client_credentials(successor)
    async with connection(server, old) as stub, StreamCall(stub.ModerateStream()) as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await call.read_verdicts(5)
        files.write(rotated)
        await reloads.said(TAKEN)
        assert await shows(server, rotated)
        assert await is_let_in(server, new)
        assert not await is_let_in(server, old)
        await stub.GetServerInfo(pb.GetServerInfoRequest())  # what is open goes on
        assert len((await call.run(tokens(answer_ids(5, seed=1)))).verdicts) == 10


async def test_rotated_client_authority(
    start_server: StartServer, files: CertificateFiles, servers: Authority, clients: Authority, reloads: Reloads
) -> None:
    files.write(servers.issue(), clients)
    server = await start(start_server, files)
    successor = Authority("clients")
    old = client_credentials(servers, clients.issue("caller"))
    new = client_credentials(servers, successor.issue("caller"))
    # A caller that resumes its TLS session shows no certificate again: the session must be worth nothing either.
    resuming = [("grpc.ssl_session_cache", ssl_session_cache_lru(4))]  # type: ignore[no-untyped-call]
    for _ in range(2):
        assert await is_let_in(server, old, resuming)
    assert not await is_let_in(server, new)
    async with connection(server, old) as stub, StreamCall(stub.ModerateStream()) as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await call.read_verdicts(5)
        files.client_ca.write_bytes(successor.certificate)
        await reloads.said(TAKEN)
        assert await is_let_in(server, new)
        assert not await is_let_in(server, old)
        assert not await is_let_in(server, old, resuming)
        assert len((await call.run(tokens(answer_ids(5, seed=1)))).verdicts) == 10
    files.client_ca.write_bytes(clients.certificate + successor.certificate)
    await reloads.said(TAKEN)
    assert await is_let_in(server, old)
    assert await is_let_in(server, new)


async def test_half_done_rotation_keeps_the_old_pair(
    start_server: StartServer, files: CertificateFiles, servers: Authority, reloads: Reloads
) -> None:
    first, second = servers.issue(), servers.issue(ends_in=LIFETIME * 2)
    files.write(first)
    server = await start(start_server, files)
    files.cert.write_bytes(second.certificate)
    await reloads.said("is not the key of the certificate")
    assert await shows(server, first)
    assert await is_let_in(server, client_credentials(servers))
    files.key.write_bytes(second.private_key)
    await reloads.said(TAKEN)
    assert await shows(server, second)
    assert await is_let_in(server, client_credentials(servers))


async def test_bad_successor_keeps_the_old_certificate_and_is_named(
    start_server: StartServer, files: CertificateFiles, servers: Authority, reloads: Reloads
) -> None:
    first = servers.issue()
    files.write(first)
    server = await start(start_server, files)
    files.write(servers.issue(ends_in=timedelta(seconds=-1)))
    await reloads.said(f"the certificate in {files.cert} has expired")
    assert await shows(server, first)
    assert await is_let_in(server, client_credentials(servers))
    files.cert.unlink()
    await reloads.said(f"tls_cert: cannot read {files.cert}")
    assert await is_let_in(server, client_credentials(servers))
