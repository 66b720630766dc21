"""Tenants that are known by their client certificates."""

from pathlib import Path

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.access.access_file import BETA_KEY, AccessFile
from tests.rpc.certificates import Authority, CertificateFiles, client_credentials
from tests.rpc.keyed import Metadata, bearer
from tests.rpc.messages import answer_ids, opening, tokens
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S, Failure, StreamCall

MAX_STREAMS = {"acme": 2, "beta": 3}
"""By which tenants are told apart: each is told its own limit."""


class Certified:
    """A server that asks for certificates, and the authorities on both sides."""

    def __init__(self, directory: Path) -> None:
        self.servers, self.clients = Authority("servers"), Authority("clients")
        self.files = CertificateFiles(directory)
        self.files.write(self.servers.issue(), self.clients)
        self.address = ""

    def channel(self, name: str) -> grpc.aio.Channel:
        """A connection of its own, of whoever shows a certificate of that name."""
        credentials = client_credentials(self.servers, self.clients.issue(name))
        return grpc.aio.secure_channel(self.address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])

    async def tenant(self, name: str, metadata: Metadata = ()) -> str | Failure:
        """The tenant of whoever shows a certificate of that name, or how he is refused."""
        async with self.channel(name) as channel:
            stub = pb_grpc.ModerationServiceStub(channel)
            try:
                info = await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=metadata, timeout=WAIT_S)
            except grpc.aio.AioRpcError as error:
                return Failure.of(error)
        (tenant,) = (tenant for tenant, limit in MAX_STREAMS.items() if limit == info.limits.max_sessions)
        return tenant


@pytest.fixture
async def certified(start_server: StartServer, tmp_path: Path) -> Certified:
    file = AccessFile(tmp_path / "access.yaml")
    file.tenants = {tenant: {"max_streams": limit} for tenant, limit in MAX_STREAMS.items()}
    file.certificates = [{"tenant": "acme", "dns": "gateway.acme.test"}, {"tenant": "beta", "common_name": "beta"}]
    world = Certified(tmp_path)
    server: RunningServer = await start_server(access_file=file.write(), **world.files.settings)
    world.address = server.address
    return world


async def test_certificates_name_tenants(certified: Certified) -> None:
    assert await certified.tenant("gateway.acme.test") == "acme"
    assert await certified.tenant("beta") == "beta"
    async with certified.channel("beta") as channel:
        call = StreamCall(pb_grpc.ModerationServiceStub(channel).ModerateStream())
        assert (await call.run(opening(), tokens(answer_ids(3)))).summary


async def test_a_key_decides_over_a_certificate(certified: Certified) -> None:
    assert await certified.tenant("gateway.acme.test", bearer(BETA_KEY)) == "beta"
    refused = await certified.tenant("beta", bearer("gw_unknown"))
    assert isinstance(refused, Failure)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIAL")


async def test_a_certificate_of_nobody(certified: Certified) -> None:
    refused = await certified.tenant("gamma")
    assert isinstance(refused, Failure)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_TENANT")
