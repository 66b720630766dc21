"""Writes within a time limit: what a caller sees when it reads late, steadily, or not at all."""

import asyncio
from typing import Any, cast

import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.errors import StreamTimeout
from guardwire_server.rpc.bounded_writes import BoundedWrites

LIMIT_S = 0.2
RESPONSE = pb.ModerateStreamResponse()


class Caller:
    """Stands in for the call's context: a write ends when the caller reads."""

    def __init__(self) -> None:
        self.reads = asyncio.Semaphore(0)

    async def write(self, response: pb.ModerateStreamResponse) -> None:
        await self.reads.acquire()


def bounded(caller: Caller, limit_s: float = LIMIT_S) -> BoundedWrites:
    return BoundedWrites(cast("Any", caller), limit_s)


async def test_a_caller_that_reads_nothing_is_given_up() -> None:
    with bounded(Caller()) as responses, pytest.raises(StreamTimeout, match=r"read nothing for 0\.2 s") as caught:
        await responses.write(RESPONSE)
    assert caught.value.reason == "WRITE_TIMEOUT"
    await asyncio.sleep(0)  # the task is not cancelled any more: this would raise


async def test_the_limit_is_one_writes_own() -> None:
    caller = Caller()
    loop = asyncio.get_running_loop()
    with bounded(caller) as responses:
        for _ in range(4):  # together far more than the limit
            loop.call_later(0.7 * LIMIT_S, caller.reads.release)
            await responses.write(RESPONSE)


async def test_a_pause_between_writes_does_not_count() -> None:
    caller = Caller()
    with bounded(caller) as responses:
        caller.reads.release()
        await responses.write(RESPONSE)
        await asyncio.sleep(1.5 * LIMIT_S)
        caller.reads.release()
        await responses.write(RESPONSE)


async def test_a_late_write_has_all_of_the_limit() -> None:
    """The timer that the first write started runs out during the second, which has waited for a moment only."""
    caller = Caller()
    loop = asyncio.get_running_loop()
    with bounded(caller) as responses:
        caller.reads.release()
        await responses.write(RESPONSE)
        await asyncio.sleep(0.7 * LIMIT_S)
        loop.call_later(0.7 * LIMIT_S, caller.reads.release)
        await responses.write(RESPONSE)
        with pytest.raises(StreamTimeout):
            await responses.write(RESPONSE)


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def write() -> None:
        with bounded(Caller(), limit_s=60.0) as responses:
            await responses.write(RESPONSE)

    task = asyncio.create_task(write())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_left_behind() -> None:
    caller = Caller()
    caller.reads.release()
    with bounded(caller) as responses:
        await responses.write(RESPONSE)
        timer = responses._timer
        assert timer is not None
    assert timer.cancelled()
