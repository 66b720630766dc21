"""What the tests of the real process share."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.e2e.server_process import ServerProcess
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint

HEAD_DIM = 32
"""As wide as the kernels need it on the processors with the longest vectors: these tests are about what users run."""


class StartProcess(Protocol):
    """Starts a server on a free port with small checkpoints, unless the settings say otherwise."""

    def __call__(self, environment: dict[str, str] | None = None, **settings: Any) -> ServerProcess: ...  # noqa: ANN401


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Stream and a Gen checkpoint; not to be changed."""
    directory = tmp_path_factory.mktemp("checkpoints")
    stream, gen = directory / "tiny-stream", directory / "tiny-gen"
    return write_stream_checkpoint(stream, head_dim=HEAD_DIM), write_gen_checkpoint(gen, head_dim=HEAD_DIM)


@pytest.fixture
def start_process(tmp_path: Path, checkpoints: tuple[Path, Path]) -> Iterator[StartProcess]:
    """Starts servers; whatever still runs when the test ends is killed."""
    processes: list[ServerProcess] = []
    numbers = itertools.count()

    def start(environment: dict[str, str] | None = None, **settings: Any) -> ServerProcess:  # noqa: ANN401
        stream_path, gen_path = checkpoints
        defaults = {
            "stream_model": stream_path,
            "gen_model": gen_path,
            "listen": "127.0.0.1:0",
            "device": "cpu",
            "num_threads": 1,
            "max_context_tokens": 512,
            "kv_memory_gib": 0.02,
        }
        directory = tmp_path / f"server-{next(numbers)}"
        process = ServerProcess(directory, defaults | settings, environment or {})
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.close()
