"""Servers in processes of their own: the real one, and those that are modules of this benchmark."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.progress import say

START_TIMEOUT_S = 300.0
POLL_S = 0.2

_CHECKOUT = Path(__file__).parents[2]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ServerProcess:
    """Where a server serves, and which process it is."""

    address: str
    pid: int

    def cpu_s(self) -> float:
        """The seconds that its threads have computed since its start: unlike the wall's they say nothing of others."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime, stime: proc(5) counts the two before too


def server_process(*flags: str) -> contextlib.AbstractAsyncContextManager[ServerProcess]:
    """Runs `guardwire-server serve` with those flags; see `_serving`."""
    return _serving("guardwire-server", str(Path(sys.executable).with_name("guardwire-server")), "serve", *flags)


def module_process(module: str, *flags: str) -> contextlib.AbstractAsyncContextManager[ServerProcess]:
    """Runs `python -m module` with those flags; see `_serving`."""
    return _serving(module, sys.executable, "-m", module, *flags)


@contextlib.asynccontextmanager
async def _serving(name: str, *command: str) -> AsyncIterator[ServerProcess]:
    """Runs a command with an address to serve on and a ready file to write, and ends it after the block.

    Raises:
        RuntimeError: It ended before it served; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready_file, log_file = Path(folder) / "ready", Path(folder) / "log"
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(*command, "--listen", "127.0.0.1:0", "--ready-file", str(ready_file)),
                stdout=log,
                stderr=log,
                cwd=_CHECKOUT,
            )
        try:
            say(f"starting {name}")
            async with asyncio.timeout(START_TIMEOUT_S):
                while not ready_file.exists():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), POLL_S)
                        raise RuntimeError(f"{name} ended with {process.returncode}:\n{log_file.read_text()[-2000:]}")
            yield ServerProcess(ready_file.read_text().strip(), process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
