import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from guardwire_server.core.errors import EngineUnavailable
from guardwire_server.engine.device_thread import DeviceThread
from tests.engine.fakes import TIMEOUT_S, ManualClock, wait_until


class RecordingEngine:
    """Implements StepEngine: a step takes every message that waits; the message itself says what becomes of it."""

    def __init__(self) -> None:
        self.num_consecutive_failures = 0
        self.applied: list[str] = []
        self.steps: list[list[str]] = []
        self.delivered: list[Sequence[str]] = []
        self.deliverers: set[int] = set()
        self.changed = asyncio.Event()
        self.stepping = threading.Event()
        self.may_step = threading.Event()
        self.may_step.set()
        self.num_expected = 0  # callers who will come back after each step
        self.on_step: Callable[[], None] = lambda: None
        self.num_pending = 0  # as it was told last
        self._num_missing = 0
        self._pending: deque[str] = deque()

    @property
    def expects_more(self) -> bool:
        return self._num_missing > 0

    @property
    def has_work(self) -> bool:
        return bool(self._pending)

    def apply(self, message: str) -> None:
        assert message != "no message", "cannot be applied"
        self.applied.append(message)
        self._num_missing -= 1
        self._pending.append(message)

    def update_load(self) -> None:
        self.num_pending = len(self._pending)

    def step(self) -> Sequence[str]:
        self.stepping.set()
        assert self.may_step.wait(TIMEOUT_S)
        self.stepping.clear()
        messages = list(self._pending)
        self._pending.clear()
        self.steps.append(messages)
        self._num_missing = self.num_expected
        self.on_step()
        if "raise" in messages:
            raise ValueError("a fault of the engine itself")
        if "again" in messages:
            self._pending.append("again")
        self.num_consecutive_failures = self.num_consecutive_failures + 1 if "fail" in messages else 0
        return [message for message in messages if message != "silent"]

    def fail_all(self, error: EngineUnavailable) -> Sequence[str]:
        lost = [f"{error.reason} {message}" for message in self._pending]
        self._pending.clear()
        return lost

    def deliver(self, results: Sequence[str]) -> None:
        self.delivered.append(results)
        self.deliverers.add(threading.get_ident())
        self.changed.set()

    async def wait_for(self, num_deliveries: int) -> None:
        await wait_until(lambda: len(self.delivered) >= num_deliveries, self.changed)

    async def wait_until_stepping(self) -> None:
        assert await asyncio.to_thread(self.stepping.wait, TIMEOUT_S)


@asynccontextmanager
async def running(*engines: RecordingEngine, clock: ManualClock | None = None) -> AsyncIterator[DeviceThread]:
    thread = DeviceThread(engines, clock) if clock else DeviceThread(engines)
    thread.start()
    try:
        yield thread
    finally:
        for engine in engines:
            engine.may_step.set()
        assert await thread.stop(TIMEOUT_S)


async def test_messages_are_applied_in_order_and_a_step_wakes_the_loop_once() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        engine.may_step.clear()
        thread.submit(engine, "a")
        await engine.wait_until_stepping()
        for message in "bcde":
            thread.submit(engine, message)
        engine.may_step.set()
        await engine.wait_for(2)
    assert engine.applied == list("abcde")
    assert engine.delivered == [["a"], ["b", "c", "d", "e"]]
    assert engine.deliverers == {threading.get_ident()}


async def test_the_load_is_told_before_the_step_that_changes_it() -> None:
    engine = RecordingEngine()
    loads: list[int] = []
    engine.on_step = lambda: loads.append(engine.num_pending)
    async with running(engine) as thread:
        for message in "abc":
            thread.submit(engine, message)
        await engine.wait_for(1)
    assert loads == [3]


async def test_a_step_without_results_wakes_nobody() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        thread.submit(engine, "silent")
        thread.submit(engine, "a")
        await engine.wait_for(1)
    assert [message for step in engine.steps for message in step] == ["silent", "a"]
    assert engine.delivered == [["a"]]


async def test_engines_take_turns() -> None:
    busy, other = RecordingEngine(), RecordingEngine()
    async with running(busy, other) as thread:
        thread.submit(busy, "again")
        await busy.wait_for(2)
        thread.submit(other, "a")
        await other.wait_for(1)
    assert other.delivered == [["a"]]


async def test_three_failed_steps_in_a_row_mean_the_device_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    engine, other = RecordingEngine(), RecordingEngine()
    async with running(engine, other) as thread:
        for number in range(2):
            thread.submit(engine, "fail")
            await engine.wait_for(number + 1)
        engine.may_step.clear()
        thread.submit(engine, "fail")
        await engine.wait_until_stepping()
        thread.submit(engine, "a")
        thread.submit(other, "b")
        engine.may_step.set()
        await other.wait_for(1)
        assert thread.is_dead
        with pytest.raises(EngineUnavailable) as caught:
            thread.submit(engine, "c")
    assert caught.value.reason == "DEVICE_LOST"
    assert engine.delivered == [["fail"], ["fail"], ["fail"], ["DEVICE_LOST a"]]
    assert other.delivered == [["DEVICE_LOST b"]]
    assert "the device thread died" in caplog.text


async def test_a_success_between_failures_starts_the_count_anew() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        for number, message in enumerate(("fail", "fail", "a", "fail", "fail", "b")):
            thread.submit(engine, message)
            await engine.wait_for(number + 1)
        assert not thread.is_dead


@pytest.mark.parametrize("message", ["raise", "no message"])
async def test_a_fault_outside_the_backend_is_the_end_and_says_so(
    message: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, other = RecordingEngine(), RecordingEngine()
    async with running(engine, other) as thread:
        other.may_step.clear()
        thread.submit(other, "a")
        await other.wait_until_stepping()
        thread.submit(engine, message)
        thread.submit(other, "b")
        other.may_step.set()
        await other.wait_for(2)
        assert thread.is_dead
        assert thread.busy_for_s() == 0
    assert other.delivered == [["a"], ["DEVICE_LOST b"]]
    assert "the device thread died" in caplog.text


async def test_stopping_fails_what_is_pending_and_takes_nothing_more() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        engine.may_step.clear()
        thread.submit(engine, "a")
        await engine.wait_until_stepping()
        thread.submit(engine, "b")
        assert not await thread.stop(timeout_s=0.0), "the step has not ended"
        engine.may_step.set()
        assert await thread.stop(TIMEOUT_S)
        await engine.wait_for(2)
        with pytest.raises(EngineUnavailable) as caught:
            thread.submit(engine, "c")
    assert caught.value.reason == "STOPPED"
    assert engine.delivered == [["a"], ["STOPPED b"]]


async def test_an_idle_thread_stops_at_once_and_may_be_stopped_again() -> None:
    async with running(RecordingEngine()) as thread:
        assert await thread.stop(TIMEOUT_S)


async def test_busy_tells_how_long_the_present_step_runs() -> None:
    engine, clock = RecordingEngine(), ManualClock()
    async with running(engine, clock=clock) as thread:
        assert thread.busy_for_s() == 0
        engine.may_step.clear()
        thread.submit(engine, "a")
        await engine.wait_until_stepping()
        clock.now_s += 7.0
        assert thread.busy_for_s() == 7.0
        engine.may_step.set()
        await engine.wait_for(1)
        assert thread.busy_for_s() == 0


def test_a_loop_that_is_gone_ends_the_thread_quietly() -> None:
    with asyncio.Runner() as runner:

        async def start() -> tuple[DeviceThread, RecordingEngine]:
            engine = RecordingEngine()
            thread = DeviceThread([engine])
            thread.start()
            engine.may_step.clear()
            thread.submit(engine, "a")
            await engine.wait_until_stepping()
            return thread, engine

        thread, engine = runner.run(start())
    engine.may_step.set()
    thread._thread.join(TIMEOUT_S)
    assert not thread._thread.is_alive()


async def test_what_is_submitted_in_one_round_of_the_loop_shares_a_step() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        for message in "abc":
            thread.submit(engine, message)
        await engine.wait_for(1)
    assert engine.steps == [["a", "b", "c"]]


async def test_what_was_submitted_while_the_device_was_being_lost_fails_too() -> None:
    engine = RecordingEngine()
    async with running(engine) as thread:
        engine.may_step.clear()
        thread.submit(engine, "raise")
        await engine.wait_until_stepping()
        engine.may_step.set()
        thread._thread.join(TIMEOUT_S)  # and the loop has not heard of it
        thread._outbox.append((engine, "late"))  # as if submitted a moment before
        await engine.wait_for(1)
    assert engine.delivered == [["DEVICE_LOST late"]]


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
