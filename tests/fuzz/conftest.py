"""What the fuzz tests share: small servers that are tried, and what must hold when all is over."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from guardwire_server.rpc import health
from tests.fuzz.tried_server import TriedServer
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.rpc.running_server import LoadedModels, RunningServer, make_config

torch.set_num_threads(1)

StartTrial = Callable[..., Awaitable[TriedServer]]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Stream and a Gen checkpoint; not to be changed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    return write_stream_checkpoint(directory / "tiny-stream"), write_gen_checkpoint(directory / "tiny-gen")


@pytest.fixture
async def start_trial(
    checkpoints: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[StartTrial]:
    """Starts a server with a bystander; at the end nothing may be left in it, and nothing have gone wrong in it.

    The context is so short that answers outgrow it, and the arena so small that streams are evicted.
    """
    monkeypatch.setattr(health, "PROBE_INTERVAL_S", 3600.0)
    limits: dict[str, Any] = {"max_context_tokens": 192, "max_pending_tokens": 48, "kv_memory_gib": 0.0003}
    patience = {"idle_timeout_s": 1e6, "max_lifetime_s": 1e6}  # a long run has one bystander
    async with AsyncExitStack() as servers:

        async def start(**settings: Any) -> TriedServer:  # noqa: ANN401 settings of all types
            config = make_config(checkpoints, **(limits | patience | settings))
            server = await servers.enter_async_context(RunningServer(config, LoadedModels().take(config)))
            return await servers.enter_async_context(TriedServer(server))

        yield start
    records = [record for phase in ("setup", "call", "teardown") for record in caplog.get_records(phase)]
    errors = [record.getMessage() for record in records if record.levelno >= logging.ERROR]
    assert not errors, "the server or the event loop has logged an error"
