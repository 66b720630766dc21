"""A server that sequences are tried on, with a bystander whom none of them may disturb."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Self

from tests.fuzz.sequences import SequenceMaker
from tests.fuzz.served import Served
from tests.fuzz.speaking_bystander import SpeakingBystander
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S


class TriedServer:
    """Owner of the bystander, for the duration of an `async with`; at its end nothing may be left in the server."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.served: Served
        self.maker: SequenceMaker
        self.num_batches = 0
        self._bystander = SpeakingBystander(server)
        self._num_tasks = 0
        self.has_failed = False

    async def __aenter__(self) -> Self:
        """Gets to know the server."""
        self.served = await Served.by(self.server)
        self.maker = SequenceMaker(self.served)
        await self._bystander.begin()
        await self.server.settled(num_sessions=1)
        self._num_tasks = len(asyncio.all_tasks())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Checks what is left, unless the test has failed already."""
        if kind or self.has_failed:
            return
        await self._tasks_ended()
        await self._bystander.end()
        await self.server.settled()
        async with asyncio.timeout(WAIT_S):
            while (load := (await self.server.info()).load).num_pending_tokens or load.kv_arena_used:
                pass
        assert (load.num_sessions, load.num_classify_calls) == (0, 0)

    async def try_all(self, cases: Iterable[Any], check: Callable[[Self, Any], Awaitable[None]]) -> None:
        """Tries all of them at once, while the bystander speaks; then none of them may be left in the server.

        Raises:
            AssertionError: If one of the checks failed; which one is printed.
        """
        trials = [self._try(case, check) for case in cases]
        self.num_batches += 1
        errors = await asyncio.gather(self._bystander.speak(), *trials, return_exceptions=True)
        try:
            await self.server.settled(num_sessions=1)
        finally:
            for error in errors:
                if error is not None:
                    self.has_failed = True
                    raise error

    async def _try(self, case: object, check: Callable[[Self, Any], Awaitable[None]]) -> None:
        try:
            await check(self, case)
        except BaseException:
            if not self.has_failed:
                self.has_failed = True
                print(f"\nThe first case that failed: {case!r}")
            raise

    async def _tasks_ended(self) -> None:
        """Waits until the event loop has no more tasks than at the beginning."""
        async with asyncio.timeout(WAIT_S):
            while len(asyncio.all_tasks()) > self._num_tasks:
                await self.server.info()
