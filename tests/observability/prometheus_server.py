"""Debian's Prometheus as a process of its own, and what it says over its HTTP API."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import yaml

from tests.observability.deployed import RULES_FILE
from tests.tools import skip_without

JOB = "guardwire"

WAIT_S = 30.0
"""How long anything may take before a test fails; nothing waits this long otherwise."""

_POLL_S = 0.05
_READY = "Server is ready to receive web requests"
_ADDRESS = re.compile(r'msg="Listening on" address=(\S+)')

Series = dict[str, str]


def prometheus_program() -> str:
    """Where the program is; skips the test if it is nowhere."""
    return shutil.which("prometheus") or skip_without("prometheus (Debian package prometheus)")


class Prometheus:
    """Owner of one process that scrapes one target and evaluates the rules; `close` ends it."""

    def __init__(self, program: str, directory: Path, target: str) -> None:
        """Starts the program; its storage and its log go to `directory`."""
        configuration = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(RULES_FILE)],
            "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
        }
        directory.mkdir()
        config_file = directory / "prometheus.yaml"
        config_file.write_text(yaml.safe_dump(configuration))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config_file}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "1"},
            )
        self._address = ""

    async def __aenter__(self) -> Self:
        async with asyncio.timeout(WAIT_S):
            while _READY not in (log := self._log.read_text()):
                assert self._process.poll() is None, log
                await asyncio.sleep(_POLL_S)
        (self._address,) = _ADDRESS.findall(log)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        try:
            self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def ask(self, path: str, **parameters: str | float) -> Any:  # noqa: ANN401 JSON of any shape
        """The data of an answer.

        Raises:
            AssertionError: Prometheus says that something is wrong, in words.
        """
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        answer = json.loads(await asyncio.to_thread(_fetch, url))
        assert answer["status"] == "success", answer
        return answer["data"]

    async def query(self, expression: str) -> list[tuple[Series, float]]:
        """What an expression gives now: values by labels."""
        data = await self.ask("query", query=expression)
        assert data["resultType"] == "vector", data
        return [(result["metric"], float(result["value"][1])) for result in data["result"]]

    async def scraped(self) -> None:
        """Waits until a scrape that has not begun yet is in the storage."""
        for _ in range(2):  # the next one may be under way
            since_s = max([value for _, value in await self.query(f'timestamp(up{{job="{JOB}"}})')], default=0.0)
            await self.until(f'timestamp(up{{job="{JOB}"}} == 1) > {since_s}')

    async def until(self, expression: str) -> None:
        """Waits until an expression gives anything."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if await self.query(expression):
                    return
                await asyncio.sleep(_POLL_S)

    async def rules(self) -> list[dict[str, Any]]:
        """The state of all rules, once each of the fast groups has been evaluated again.

        A slow group's first turn may be minutes away.
        """
        since = datetime.now(UTC)
        async with asyncio.timeout(WAIT_S):
            while True:
                groups = (await self.ask("rules"))["groups"]
                times = [group["lastEvaluation"] for group in groups if group["interval"] < 1]
                if all(datetime.fromisoformat(time) > since for time in times):
                    return [rule for group in groups for rule in group["rules"]]
                await asyncio.sleep(_POLL_S)


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as response:
            content: bytes = response.read()
    except urllib.error.HTTPError as error:  # its body says what was wrong with the query
        with error:
            content = error.read()
    return content
