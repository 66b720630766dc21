"""`guardwire-server health` as an orchestrator runs it: beside the server, with the server's environment."""

import asyncio
import os
import signal
import subprocess

from tests.e2e.conftest import StartProcess
from tests.e2e.server_process import PROGRAM, WAIT_S


async def health(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GUARDWIRE_")}

    def run() -> subprocess.CompletedProcess[str]:
        command, environment = [str(PROGRAM), "health", *flags], {**inherited, **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)

    return await asyncio.to_thread(run)


async def test_health_of_a_process(start_process: StartProcess) -> None:
    server = start_process(gen_model="none", grace_s=0, drain_delay_s=0)
    address = await server.ready()
    ran = await health(GUARDWIRE_LISTEN=address)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "SERVING\n", "")
    ran = await health("--service", "liveness", "--target", address)
    assert (ran.returncode, ran.stdout) == (0, "SERVING\n")
    server.signal(signal.SIGTERM)
    assert await server.ended() == 0
    ran = await health(GUARDWIRE_LISTEN=address)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "UNAVAILABLE" in ran.stderr


async def test_settings_from_which_nothing_follows() -> None:
    ran = await health(GUARDWIRE_LISTEN="127.0.0.1:0")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("guardwire-server: 127.0.0.1:0 is whichever port is free")
