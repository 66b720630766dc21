"""One bidirectional call, for asyncio: reads by itself, and knows how it really ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import grpc
from grpc import aio

from guardwire.call_outcome import CallOutcome
from guardwire.errors import GuardwireError, stream_left, unreadable

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncCall(Generic[RequestT, ResponseT]):
    """A call whose responses go to `receive` as they come, and whose end goes to `end`, once.

    Owner: the stream, or the streams, that it carries. A task of its own reads all the time, so the server never waits
    for the caller. One task at a time may write.
    """

    def __init__(
        self,
        call: aio.StreamStreamCall[RequestT, ResponseT],
        receive: Callable[[ResponseT], None],
        end: Callable[[GuardwireError | None], None],
    ) -> None:
        """Takes a call that was just started.

        Args:
            call: The call; nothing was written to it yet.
            receive: Takes a response. What it raises cancels the call and ends it.
            end: Takes what the call failed with; None when the server ended it well.
        """
        self._call = call
        self._receive = receive
        self._end = end
        self._over = asyncio.Event()
        self._left = False
        self._reader = asyncio.create_task(self._read(CallOutcome(call)), name="guardwire-stream")
        self._reader.add_done_callback(self._note_cancelled)

    @property
    def is_over(self) -> bool:
        """True once `end` was called."""
        return self._over.is_set()

    async def wait_over(self) -> None:
        """Waits until `end` was called."""
        await self._over.wait()

    async def write(self, request: RequestT) -> None:
        """Writes, unless the call is over; where it ends meanwhile, `end` has been called on return."""
        await self._unless_over(lambda: self._call.write(request))

    async def done_writing(self) -> None:
        """Tells the server that nothing more will be written."""
        await self._unless_over(self._call.done_writing)

    async def leave(self) -> None:
        """Cancels the call if it is not over."""
        self._left = True
        self._call.cancel()
        await asyncio.wait([self._reader])

    async def _unless_over(self, operation: Callable[[], Awaitable[None]]) -> None:
        if self.is_over:
            return
        try:
            await operation()
        except (grpc.RpcError, aio.BaseError, asyncio.InvalidStateError):
            await self._over.wait()  # the call has ended: the reader knows how
        except asyncio.CancelledError:
            if self._is_cancelled():
                raise
            await self._over.wait()

    def _is_cancelled(self) -> bool:
        """Whether the present task is, and not only the call that it was writing to."""
        task = asyncio.current_task()
        return not self._left or (task is not None and task.cancelling() > 0)

    async def _read(self, outcome: CallOutcome) -> None:
        last: aio.AioRpcError | None = None
        try:
            async for response in self._call:
                self._receive(response)
        except aio.AioRpcError as error:
            last = error
        except asyncio.CancelledError:
            self._finish(stream_left())
        except Exception as error:  # whatever it is, it is the caller's to see
            self._call.cancel()
            self._finish(unreadable(error))
        if not self.is_over:
            self._finish(await outcome.error(last))

    def _note_cancelled(self, reader: asyncio.Task[None]) -> None:
        if reader.cancelled() and not self.is_over:  # before its first step, as when the event loop closes
            self._finish(stream_left())

    def _finish(self, failure: GuardwireError | None) -> None:
        self._over.set()
        self._end(failure)
