import asyncio
import threading

import pytest

from guardwire_server.core.errors import EngineUnavailable
from guardwire_server.engine.device_thread import DeviceThread
from tests.engine.fakes import TIMEOUT_S, ManualClock
from tests.engine.recording_engine import RecordingEngine, running


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
