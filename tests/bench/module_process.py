"""A server that is a module of this benchmark, in a process of its own."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.progress import say
from tests.bench.server_process import POLL_S, START_TIMEOUT_S

_CHECKOUT = Path(__file__).parents[2]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ServingProcess:
    """Where a server serves, and which process it is."""

    address: str
    pid: int

    def cpu_s(self) -> float:
        """The seconds that its threads have computed since its start: unlike the wall's they say nothing of others."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime, stime: proc(5) counts the two before too


@contextlib.asynccontextmanager
async def module_process(module: str, *flags: str) -> AsyncIterator[ServingProcess]:
    """Runs `python -m module` with those flags, an address to serve on and a ready file to write.

    Raises:
        RuntimeError: It ended before it served; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready_file, log_file = Path(folder) / "ready", Path(folder) / "log"
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--ready-file", str(ready_file), *flags),
                stdout=log,
                stderr=log,
                cwd=_CHECKOUT,
            )
        try:
            say(f"starting {module}")
            async with asyncio.timeout(START_TIMEOUT_S):
                while not ready_file.exists():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), POLL_S)
                        raise RuntimeError(f"{module} ended with {process.returncode}:\n{log_file.read_text()[-2000:]}")
            yield ServingProcess(ready_file.read_text().strip(), process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
