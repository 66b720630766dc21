"""The real server in a process of its own, as an operator runs it."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(sys.executable).with_name("guardwire-server")
WAIT_S = 60.0
"""How long a process may take to start or to end: importing torch alone takes seconds on a busy machine."""

_POLL_S = 0.02
_MEMORY_MAP = "smaps_rollup"

needs_memory_map = pytest.mark.skipif(
    not Path("/proc/self", _MEMORY_MAP).exists(), reason=f"this system has no /proc/PID/{_MEMORY_MAP}"
)
"""Marks tests that read `own_bytes`."""


class ServerProcess:
    """Owner of one process; `close` kills it if it still runs."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Starts `guardwire-server serve` with settings as flags.

        Args:
            directory: Where its output and its ready file go.
            settings: Flags by the names of their keys.
            environment: Variables beside those of this process.
        """
        directory.mkdir(exist_ok=True)
        self.ready_file = directory / "ready"
        self._errors = directory / "stderr"
        flags = {"ready_file": self.ready_file, **settings}
        command = [str(PROGRAM), "serve"]
        for key, value in flags.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GUARDWIRE_")}
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=errors, env={**inherited, **environment}, cwd=directory
            )

    @property
    def errors(self) -> str:
        """What it has written to its standard error."""
        return self._errors.read_text()

    async def ready(self) -> str:
        """Waits until it serves; returns its address."""
        async with asyncio.timeout(WAIT_S):
            while not self.ready_file.exists():
                assert self._process.poll() is None, self.errors
                await asyncio.sleep(_POLL_S)
        return self.ready_file.read_text().removesuffix("\n")

    @property
    def own_bytes(self) -> int:
        """Memory that it holds for itself: files that are mapped come and go as the kernel likes."""
        lines = Path(f"/proc/{self._process.pid}", _MEMORY_MAP).read_text().splitlines()[1:]
        sizes = {name: int(size) * 1024 for name, size, _ in (line.replace(":", "").split() for line in lines)}
        return sizes["Anonymous"] + sizes["Swap"]

    def wait(self) -> int:
        """Waits until it has ended; returns its exit status."""
        return self._process.wait(WAIT_S)

    async def ended(self) -> int:
        """As `wait`, beside the event loop."""
        return await asyncio.to_thread(self.wait)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
