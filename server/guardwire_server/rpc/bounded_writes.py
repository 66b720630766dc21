"""Writing a call's responses, each within a time limit, without a timer for each."""

import asyncio
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from guardwire_server.core.errors import StreamTimeout


class BoundedWrites:
    """The responses of one call. Use as a context manager, in the task that writes. Thread: the event loop.

    A timer runs out once in a limit's time at most, and only while the call writes: then it looks at how long the
    present write has been waiting. A caller who reads pays for no timer, whatever the rate.
    """

    def __init__(self, context: "grpc.aio.ServicerContext[Any, Any]", timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any]
        self._timer: asyncio.TimerHandle | None = None
        self._writes_since_s: float | None = None
        self._has_expired = False

    def __enter__(self) -> "BoundedWrites":
        """Takes note of the task."""
        task = asyncio.current_task()
        assert task is not None  # grpc.aio calls its handlers in tasks
        self._task = task
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def write(self, response: Message) -> None:
        """Writes a response; returns when there is room for the next.

        Raises:
            StreamTimeout: If the caller has not made that room for `timeout_s`.
        """
        self._writes_since_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check)
        try:
            await self._context.write(response)
        except asyncio.CancelledError:
            if self._has_expired and not self._task.uncancel():
                message = f"the caller read nothing for {self._timeout_s:g} s, the limit"
                raise StreamTimeout("WRITE_TIMEOUT", message) from None
            raise
        finally:
            self._writes_since_s = None

    def _check(self) -> None:
        self._timer = None
        if self._writes_since_s is None:
            return  # the next write starts the timer
        expires_s = self._writes_since_s + self._timeout_s
        if self._loop.time() < expires_s:
            self._timer = self._loop.call_at(expires_s, self._check)
        else:
            self._has_expired = True
            self._task.cancel()
