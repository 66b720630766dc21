"""A real server in a process of its own."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.progress import say

START_TIMEOUT_S = 300.0
POLL_S = 0.2


@contextlib.asynccontextmanager
async def server_process(*flags: str) -> AsyncIterator[str]:
    """Runs `guardwire-server serve` with those flags and gives the address it serves on.

    Raises:
        RuntimeError: It ended before it served; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready_file, log_file = Path(folder) / "ready", Path(folder) / "log"
        command = Path(sys.executable).with_name("guardwire-server")
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(command), "serve", "--listen", "127.0.0.1:0", "--ready-file", str(ready_file), *flags),
                stdout=log,
                stderr=log,
            )
        try:
            say("starting the server")
            async with asyncio.timeout(START_TIMEOUT_S):
                while not ready_file.exists():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(process.wait(), POLL_S)
                        raise RuntimeError(
                            f"the server ended with {process.returncode}:\n{log_file.read_text()[-2000:]}"
                        )
            yield ready_file.read_text().strip()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
