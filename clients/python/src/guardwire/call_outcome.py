"""The status that a bidirectional asyncio call really ended with.

When a write races with the server's end of the call, grpc.aio gives the failed write a status of its own, INTERNAL
"Internal error from Core", and lets it hide the server's: before or after the server's status is set
(https://github.com/grpc/grpc/issues/36066). The done callback sees the first status, in older versions every one; where
that shows only the failed write, the status in force when every response was read is the server's, or that status is
still on its way: then it takes the failed write's place within milliseconds. Reading must iterate the call: `read()`
stops at the first status and loses the responses behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import grpc
from grpc import aio

from guardwire.errors import GuardwireError, from_rpc_error

_Value = TypeVar("_Value")

_FAILED_WRITE = "Internal error from Core"

_MAX_WAIT_S = 1.0
"""For the server's status behind a failed write's; it was seen to take up to 1 ms on a busy machine."""

_POLL_S = 0.001


class CallOutcome:
    """Remembers the first status of a call that is not a failed write's.

    Owner: the stream whose call it is. Must be created before anything is written.
    """

    def __init__(self, call: aio.Call) -> None:
        self._call = call
        self._remembered: aio.AioRpcError | None = None
        call.add_done_callback(self._remember)

    async def error(self, last: aio.AioRpcError | None) -> GuardwireError | None:
        """What the call failed with; None when the server ended it well.

        Args:
            last: What iterating the call to its end raised, if anything.
        """
        status = last if self._remembered is None else self._remembered
        if status is not None and _is_failed_write(status):
            status = await self._late_status()
        return None if status is None or status.code() is grpc.StatusCode.OK else from_rpc_error(status)

    def _remember(self, call: aio.Call) -> None:
        status = _status(call)
        if self._remembered is None and not _is_failed_write(status):
            self._remembered = status

    async def _late_status(self) -> aio.AioRpcError:
        """The server's status once it is there; the failed write's if it does not come."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _MAX_WAIT_S
        while _is_failed_write(status := _status(self._call)) and loop.time() < end:  # noqa: ASYNC110 grpc wakes nobody
            await asyncio.sleep(_POLL_S)
        return status


def _status(call: aio.Call) -> aio.AioRpcError:
    """The status in force of a call that is done."""
    return aio.AioRpcError(
        _settled(call.code()),
        _settled(call.initial_metadata()),
        _settled(call.trailing_metadata()),
        _settled(call.details()),
    )


def _is_failed_write(error: aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _FAILED_WRITE


def _settled(coroutine: Coroutine[object, object, _Value]) -> _Value:
    """The result of a coroutine that has nothing to wait for, since the call is done."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: _Value = done.value
        return value
    coroutine.close()
    raise RuntimeError("a finished call did not know its status")
