"""A server as in production, as far as one process goes: TLS, two tenants with keys, policies from a file, /metrics."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import yaml

from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.config import ServerConfig
from guardwire_server.served_models import load_models
from guardwire_server.telemetry.providers import Telemetry, TelemetrySettings
from guardwire_server.telemetry.server import ServerTelemetry
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.rpc.certificates import Authority, CertificateFiles, client_credentials
from tests.rpc.running_server import RunningServer, make_config
from tests.rpc.stream_call import StreamCall

VERSION = "1.2.3"
SHUTDOWN_S = 20.0

OWN_TENANT, NARROW_TENANT = "gateway", "batch"
"""The one that the server's own stub calls as, and one that may have a single stream."""

_KEYS = {tenant: f"gw_{tenant}-of-the-tests" for tenant in (OWN_TENANT, NARROW_TENANT)}


class Files:
    """What the server is told by files, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority("tests")
        self._certificates = CertificateFiles(directory)
        self._access, self._policies = directory / "access.yaml", directory / "policies.yaml"
        self._write(
            self._access,
            {
                "version": 1,
                "tenants": {OWN_TENANT: {}, NARROW_TENANT: {"max_streams": 1}},
                "keys": [
                    {"id": tenant, "tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest()}
                    for tenant, key in _KEYS.items()
                ],
            },
        )
        self.write_policies("block")
        self.renew_certificate()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that name them."""
        return {"access_file": self._access, "policies_file": self._policies, **self._certificates.settings}

    def write_policies(self, unsafe: str) -> None:
        """Policies by which unsafe answers get this action; what is no action makes the file invalid."""
        observe = {"assistant": {"unsafe": unsafe}, "observe_only": True}
        self._write(
            self._policies,
            {"version": 1, "policies": {"default": {"assistant": {"unsafe": unsafe}}, "observe": observe}},
        )

    def renew_certificate(self) -> None:
        """Another certificate of the same authority."""
        self._certificates.write(self.authority.issue(ends_in=timedelta(days=30)))

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(yaml.safe_dump(content))
        draft.rename(path)


class SecuredServer(RunningServer):
    """Owner of a server whose callers need its authority's word and a key."""

    def __init__(self, config: ServerConfig, files: Files, telemetry: ServerTelemetry) -> None:
        super().__init__(config, load_models(config), telemetry)
        self.files = files
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        self.address = await self._server.start()
        self.channel = self._connect(_KEYS[OWN_TENANT])
        self.stub = pb_grpc.ModerationServiceStub(self.channel)
        self._narrow_stub = pb_grpc.ModerationServiceStub(self._connect(_KEYS[NARROW_TENANT]))
        self.stranger = pb_grpc.ModerationServiceStub(self._connect("gw_unknown"))
        """Calls with a key that nobody has been given."""
        return self

    async def __aexit__(self, *error: object) -> None:
        for channel in self._channels:
            await channel.close(None)
        await super().__aexit__(*error)

    def narrow_stream(self) -> StreamCall:
        """A new ModerateStream call of the tenant that may have one."""
        return StreamCall(self._narrow_stub.ModerateStream())

    def _connect(self, key: str) -> grpc.aio.Channel:
        credentials = grpc.composite_channel_credentials(
            client_credentials(self.files.authority), grpc.access_token_call_credentials(key)
        )
        channel = grpc.aio.secure_channel(self.address, credentials)
        self._channels.append(channel)
        return channel


@contextlib.asynccontextmanager
async def secured_server(directory: Path) -> AsyncIterator[tuple[SecuredServer, str]]:
    """Runs one for the length of the block; gives it with the address of its metrics."""
    files = Files(directory)
    checkpoints = write_stream_checkpoint(directory / "stream"), write_gen_checkpoint(directory / "gen")
    config = make_config(checkpoints, **files.settings, reload_interval_s=0.02)
    telemetry = Telemetry(TelemetrySettings(version=VERSION, metrics_listen="127.0.0.1:0"))
    telemetry.start()
    try:
        recorder = ServerTelemetry(VERSION, meter_provider=telemetry.meter_provider)
        async with SecuredServer(config, files, recorder) as server:
            assert telemetry.metrics_address
            yield server, telemetry.metrics_address
    finally:
        await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_S)
