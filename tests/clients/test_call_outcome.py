"""Which of grpc's two answers is the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import grpc
import pytest
from grpc import aio

from guardwire import Overloaded, ServerFault, call_outcome
from guardwire.call_outcome import CallOutcome

FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
WELL = (grpc.StatusCode.OK, "")
FAILED_WRITE = (grpc.StatusCode.INTERNAL, "Internal error from Core")

Status = tuple[grpc.StatusCode, str]


class EndedCall:
    """A call that tells statuses as soon as someone listens."""

    def __init__(self, statuses: list[Status]) -> None:
        self._statuses = statuses
        self.status = statuses[0]

    def add_done_callback(self, callback: Callable[[EndedCall], None]) -> None:
        for status in self._statuses:
            self.status = status
            callback(self)

    async def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def details(self) -> str:
        return self.status[1]

    async def initial_metadata(self) -> aio.Metadata:
        return aio.Metadata()

    async def trailing_metadata(self) -> aio.Metadata:
        return aio.Metadata()


def raised(status: Status) -> aio.AioRpcError | None:
    """What iterating raises at the end of a call with this status."""
    return None if status == WELL else aio.AioRpcError(status[0], aio.Metadata(), aio.Metadata(), status[1])


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_outcome, "_MAX_WAIT_S", 0.05)


@pytest.mark.parametrize(
    ("told", "last", "expected"),
    [
        ([FULL], FULL, Overloaded),
        ([FULL], FAILED_WRITE, Overloaded),
        ([FULL, FAILED_WRITE], FAILED_WRITE, Overloaded),
        ([FAILED_WRITE], FULL, Overloaded),
        ([FAILED_WRITE, FULL], FULL, Overloaded),
        ([WELL], WELL, None),
        ([WELL], FAILED_WRITE, None),
        ([WELL, FAILED_WRITE], FAILED_WRITE, None),
        ([FAILED_WRITE], WELL, None),
        ([FAILED_WRITE], FAILED_WRITE, ServerFault),
    ],
)
async def test_a_failed_write_never_hides_the_servers_status(
    told: list[Status], last: Status, expected: type[Exception] | None
) -> None:
    error = await CallOutcome(cast("aio.Call", EndedCall(told))).error(raised(last))
    assert (None if error is None else type(error)) is expected


@pytest.mark.parametrize(("late", "expected"), [(FULL, Overloaded), (WELL, None)])
async def test_a_status_that_comes_when_all_is_read(late: Status, expected: type[Exception] | None) -> None:
    call = EndedCall([FAILED_WRITE])
    error = asyncio.create_task(CallOutcome(cast("aio.Call", call)).error(raised(FAILED_WRITE)))
    await asyncio.sleep(0)
    assert not error.done()
    call.status = late
    failure = await error
    assert (None if failure is None else type(failure)) is expected
