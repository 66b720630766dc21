"""A server on which one tenant has limits and another has none."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.access.access_file import ACME_KEY, BETA_KEY, AccessFile
from tests.rpc.bystander import Bystander
from tests.rpc.keyed import caller
from tests.rpc.messages import opening
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S, Failure, StreamCall

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED

NEXT_TO_NOTHING = 0.001
"""A rate at which no token comes back during a test: a wait for one is 1,000 seconds."""


class Limited:
    """A server on which acme has limits and beta has none, beside a healthy stream of beta's."""

    def __init__(self, start_server: StartServer, path: Path) -> None:
        self._start_server = start_server
        self._bystander: Bystander
        self.file = AccessFile(path)
        self.server: RunningServer
        self.acme: RunningServer
        self.beta: RunningServer

    async def start(self, *, settings: dict[str, Any] | None = None, **limits: float) -> RunningServer:
        """Starts it; returns it as acme sees it."""
        self.file.tenants["acme"] = limits
        self.server = await self._start_server(
            access_file=self.file.write(), reload_interval_s=0.05, **(settings or {})
        )
        self.acme, self.beta = caller(self.server, ACME_KEY), caller(self.server, BETA_KEY)
        self._bystander = Bystander(self.beta)
        await self._bystander.begin()
        return self.acme

    @contextlib.asynccontextmanager
    async def taking(self, num_messages: int) -> AsyncIterator[None]:
        """Waits, at its end, until the server has handled so many messages more than at its beginning."""
        expected = self.server.num_messages + num_messages
        yield
        async with asyncio.timeout(WAIT_S):
            while self.server.num_messages < expected:
                await self.beta.info()

    async def end(self) -> None:
        """Checks that beta's stream was judged as if it were alone, and that nothing is left."""
        await self._bystander.end()

    async def change(self, **limits: float) -> None:
        """Writes other limits of acme's, and waits until they are in force."""
        self.file.tenants["acme"] = limits
        self.file.write()
        async with asyncio.timeout(WAIT_S):
            while (await self.acme.info()).limits.max_sessions != limits.get("max_streams", 6):
                pass


async def opened(server: RunningServer) -> StreamCall:
    call = server.stream()
    await call.send(opening())
    await call.read_until("prompt_verdict")
    return call


def assert_too_fast(failure: Failure, num_missing: int) -> None:
    assert (failure.code, failure.reason, failure.field) == (FULL, "TENANT_RATE", "")
    assert re.search(r"the tenant's limits are \d+ tokens at once and 0.001 a second", failure.message)
    assert failure.retry_after_s == pytest.approx(num_missing / NEXT_TO_NOTHING, rel=0.01)
