"""One real server process with the demo checkpoints, for all tests here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that `guardwire-server serve` has started with its defaults."""
    directory = tmp_path_factory.mktemp("demo-server")
    ready_file, log = directory / "ready", directory / "log"
    command = [sys.executable, "-m", "guardwire_server", "serve", "--listen", "127.0.0.1:0", "--drain-delay-s", "0"]
    with log.open("w") as output:
        process = subprocess.Popen([*command, "--ready-file", str(ready_file)], stderr=output, stdout=output)
        try:
            wait_for(ready_file, process, log)
            yield ready_file.read_text().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    assert "demo checkpoint" in log.read_text()  # every start says so


def wait_for(ready_file: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not ready_file.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.05)  # another process: there is nothing to wait on


def run(*command: str, expected_status: int = 0, text: str | None = None) -> str:
    """Runs a command; returns what it printed. Fails with its output on any other exit status."""
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:guardwire"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=90, env=environment, check=False)
    assert done.returncode == expected_status, done.stdout + done.stderr
    return done.stdout if expected_status == 0 else done.stdout + done.stderr
