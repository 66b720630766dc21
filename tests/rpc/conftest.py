"""What the tests over the wire share: small checkpoints, servers, and a stream that must not notice anything."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import CallerEvent
from guardwire_server.rpc import health
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.telemetry.server import ServerTelemetry
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.rpc.bystander import Bystander
from tests.rpc.limited import Limited
from tests.rpc.running_server import LoadedModels, RunningServer, StartServer, make_config

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Stream and a Gen checkpoint; not to be changed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    return write_stream_checkpoint(directory / "tiny-stream"), write_gen_checkpoint(directory / "tiny-gen")


@pytest.fixture(scope="session")
def loaded_models() -> LoadedModels:
    """Models for servers, one after another."""
    return LoadedModels()


@pytest.fixture
async def start_server(
    checkpoints: tuple[Path, Path], loaded_models: LoadedModels, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartServer]:
    """Starts servers; the health probe's own steps are out of the way, since tests count steps."""
    monkeypatch.setattr(health, "PROBE_INTERVAL_S", 3600.0)
    started: list[RunningServer] = []
    read_token, read_event = RequestReader.single_token, RequestReader.stream_event

    def count_token(reader: RequestReader, request: pb.ModerateStreamRequest) -> int | None:
        token_id = read_token(reader, request)
        started[-1].num_messages += token_id is not None
        return token_id

    def count_event(reader: RequestReader, request: pb.ModerateStreamRequest) -> CallerEvent:
        started[-1].num_messages += 1
        return read_event(reader, request)

    monkeypatch.setattr(RequestReader, "single_token", count_token)
    monkeypatch.setattr(RequestReader, "stream_event", count_event)
    async with AsyncExitStack() as servers:

        async def start(
            *,
            telemetry: ServerTelemetry | None = None,
            **settings: Any,  # noqa: ANN401 settings of all types
        ) -> RunningServer:
            config = make_config(checkpoints, **settings)
            running = RunningServer(config, loaded_models.take(config), telemetry)
            await servers.enter_async_context(running)
            servers.callback(loaded_models.give_back, running)
            started.append(running)
            return running

        yield start


@pytest.fixture
async def server(start_server: StartServer) -> RunningServer:
    """A server of both models, with small limits."""
    return await start_server()


@pytest.fixture
async def bystander(server: RunningServer) -> AsyncIterator[Bystander]:
    """A healthy stream beside the test; it must end with the verdicts of its solo run, and nothing may be left."""
    stream = Bystander(server)
    await stream.begin()
    yield stream
    for gate in server.gates:
        gate.release()
    await stream.end()


@pytest.fixture
async def limited(start_server: StartServer, tmp_path: Path) -> AsyncIterator[Limited]:
    """A server on which acme has limits and beta has none, to be started by the test."""
    server = Limited(start_server, tmp_path / "access.yaml")
    yield server
    await server.end()
