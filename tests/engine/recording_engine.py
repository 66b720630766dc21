"""An engine that notes what a device thread does with it, and the thread around it."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

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
        self.on_apply: Callable[[], None] = lambda: None
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
        self.on_apply()

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
