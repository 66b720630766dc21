"""Runs programs that use the client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import guardwire
from guardwire.cli import main


def environment(**changes: str) -> dict[str, str]:
    """This process's environment, in which the client can be imported."""
    source = str(Path(guardwire.__file__).parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", **changes}


async def run_main(*arguments: str, target: str) -> int:
    """Runs the command in this process, beside the fake server's event loop."""
    return await asyncio.to_thread(main, [*arguments, "--target", target])


async def run_python(*arguments: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs Python beside the event loop; the fake server goes on serving."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(**changes),
        timeout=60,
        check=False,
    )
