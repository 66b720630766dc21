"""How the monitor tells a device that is slow from one that is stuck; its device thread here is a fake."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from guardwire_server.core.errors import EngineUnavailable
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.rpc import health
from guardwire_server.rpc.health import HealthMonitor

STALL_TIMEOUT_S = 0.2
INTERVAL_S = 0.01


class FakeThread:
    """What the monitor asks of a device thread."""

    def __init__(self) -> None:
        self.is_dead = False
        self.num_steps = 0
        self.busy_since_s: float | None = None

    def busy_for_s(self) -> float:
        return 0.0 if self.busy_since_s is None else asyncio.get_running_loop().time() - self.busy_since_s


class Told(health.HealthServicer):
    """Keeps what it was told last."""

    is_ready: bool
    is_alive: bool

    def set(self, *, is_ready: bool, is_alive: bool) -> None:
        super().set(is_ready=is_ready, is_alive=is_alive)
        self.is_ready, self.is_alive = is_ready, is_alive


@pytest.fixture
def thread() -> FakeThread:
    return FakeThread()


def monitor_of(thread: FakeThread, probe: Callable[[], Awaitable[None]] | None) -> tuple[HealthMonitor, Told]:
    monitor = HealthMonitor(
        [], cast(DeviceThread, thread), probe, stall_timeout_s=STALL_TIMEOUT_S, interval_s=INTERVAL_S
    )
    told = monitor.servicer = Told([])
    return monitor, told


async def answered() -> None:
    """A probe that is answered."""


async def unanswered() -> None:
    """A probe that is not."""
    await asyncio.Event().wait()


async def test_probe_that_is_answered(thread: FakeThread) -> None:
    monitor, told = monitor_of(thread, answered)
    assert not monitor.is_serving
    await monitor.check()
    assert monitor.is_serving
    assert (told.is_ready, told.is_alive) == (True, True)
    monitor.shut_down()
    assert not monitor.is_serving
    assert (told.is_ready, told.is_alive) == (False, True)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, True)


async def test_nothing_to_probe_with(thread: FakeThread) -> None:
    monitor, told = monitor_of(thread, None)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (True, True)


async def test_no_answer_from_a_thread_that_does_no_steps(thread: FakeThread) -> None:
    monitor, told = monitor_of(thread, unanswered)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, False)


async def test_no_answer_from_a_thread_that_has_too_much_to_do(thread: FakeThread) -> None:
    async def outdone() -> None:
        thread.num_steps += 1
        await unanswered()

    monitor, told = monitor_of(thread, outdone)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, True)


async def test_step_that_hangs_is_not_forgotten_over_the_probe(
    thread: FakeThread, caplog: pytest.LogCaptureFixture
) -> None:
    monitor, told = monitor_of(thread, unanswered)
    thread.busy_since_s = asyncio.get_running_loop().time() - STALL_TIMEOUT_S / 2
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, False)
    (record,) = caplog.records
    assert record.message == f"health: a step has been running for more than {STALL_TIMEOUT_S:g} s"


async def test_thread_that_dies_under_the_probe(thread: FakeThread) -> None:
    async def lost() -> None:
        thread.is_dead = True
        raise EngineUnavailable("DEVICE_LOST", "the device is lost")

    monitor, told = monitor_of(thread, lost)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, False)


async def test_probe_with_a_bug(thread: FakeThread, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [ZeroDivisionError()]

    async def faulty() -> None:
        if errors:
            raise errors.pop()

    monitor, told = monitor_of(thread, faulty)
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (False, True)
    assert "ZeroDivisionError" in caplog.text
    await monitor.check()
    assert (told.is_ready, told.is_alive) == (True, True)


async def test_monitor_that_is_stopped_gives_its_probe_up(thread: FakeThread) -> None:
    asked, given_up = asyncio.Event(), asyncio.Event()

    async def waiting() -> None:
        asked.set()
        try:
            await unanswered()
        finally:
            given_up.set()

    monitor, _ = monitor_of(thread, waiting)
    watching = asyncio.create_task(monitor.run())
    await asked.wait()
    watching.cancel()
    await asyncio.wait([watching])
    assert given_up.is_set()
