"""Who shares a step on the device thread."""

import asyncio
import threading

from tests.engine.fakes import TIMEOUT_S, ManualClock
from tests.engine.recording_engine import RecordingEngine, running


async def test_what_is_submitted_in_one_round_of_the_loop_shares_a_step() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        for message in "abc":
            thread.submit(engine, message)
        await engine.wait_for(1)
    assert engine.steps == [["a", "b", "c"]]


async def test_what_comes_while_messages_are_applied_shares_their_step() -> None:
    engine, is_applying, may_go_on = RecordingEngine(), threading.Event(), threading.Event()

    def wait_for_more() -> None:
        is_applying.set()
        assert may_go_on.wait(TIMEOUT_S)

    engine.on_apply = wait_for_more
    async with running(engine) as thread:
        thread.submit(engine, "a")
        assert await asyncio.to_thread(is_applying.wait, TIMEOUT_S)
        thread.submit(engine, "b")
        await asyncio.sleep(0)  # the round ends
        may_go_on.set()
        await engine.wait_for(1)
    assert engine.steps == [["a", "b"]]


async def test_callers_who_were_just_answered_share_the_next_step() -> None:
    engine, clock = RecordingEngine(), ManualClock()
    engine.num_expected = 3
    engine.on_step = lambda: clock.advance(100.0)  # so ten seconds of this clock may be waited
    async with running(engine, clock=clock) as thread:
        thread.submit(engine, "a")
        await engine.wait_for(1)
        for message in "bcd":
            thread.submit(engine, message)
        await engine.wait_for(2)
    assert engine.steps == [["a"], ["b", "c", "d"]]


async def test_callers_who_do_not_come_back_are_not_waited_for_long() -> None:
    engine = RecordingEngine()
    engine.num_expected = 3
    async with running(engine, clock=TickingClock()) as thread:
        thread.submit(engine, "a")
        await engine.wait_for(1)
        thread.submit(engine, "b")
        await engine.wait_for(2)
    assert engine.steps == [["a"], ["b"]]


class TickingClock(ManualClock):
    """Goes on by a millisecond whenever it is read."""

    def __call__(self) -> float:
        self.advance(0.001)
        return super().__call__()
