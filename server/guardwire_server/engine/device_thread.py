"""The one thread that runs models.

Theory of operation. Everything that touches a model, a scheduler or an arena happens here. The event loop hands in
messages through an inbox, and does not touch them any more from then on; the thread applies them, lets every engine
that has work take one step in turn, and hands all results of a step back with a single wake-up of the loop. Nothing
else is shared but `EngineLoad` snapshots, which are replaced whole.

What the loop submits in one round of its callbacks reaches the inbox together, at the round's end: a wake-up of the
thread for each token would cost more than the token, and would make a step of each.

Callers that push a token, wait for its verdict and push the next one would fall into two groups, one answering while
the step of the other runs, and every step would be half full though it costs nearly as much as a full one. So before a
step the thread waits, for a small share of the last step's time, for those who have just been answered.

A step that raises costs the sequences of that step. An engine that fails several steps in a row has lost its device:
then the thread fails everything, says so, and takes nothing more. A thread that is stopped does the same, so that
nobody waits for an answer that cannot come.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from guardwire_server.core.errors import EngineUnavailable

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3
"""One failed step can be the fault of its input; three in a row, each with other sequences, are the device's."""


GATHER_SHARE = 0.1
"""How long to wait for callers that were just answered, as a share of the last step's time: far more than a round trip
takes on a CPU, and no more than a tenth of the rate is lost when they do not come back."""

MIN_GATHER_S = 0.0001
"""A shorter wait is not worth its wake-ups: nobody hears of a verdict and answers it in so little time."""


class StepEngine(Protocol):
    """What the device thread drives. All of it is called on that thread, `deliver` excepted: on the event loop.

    When the thread has ended, `apply`, `update_load` and `fail_all` may be called once more, on the event loop.
    """

    num_consecutive_failures: int

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        ...

    @property
    def expects_more(self) -> bool:
        """Whether somebody whom the last step answered has not sent anything since."""
        ...

    def apply(self, message: Any) -> None:  # noqa: ANN401 each engine has messages of its own
        """Takes a message from the event loop."""
        ...

    def update_load(self) -> None:
        """Tells the load anew; once for all messages that were applied."""
        ...

    def step(self) -> Sequence[Any]:
        """Does one step; returns what `deliver` is to be called with."""
        ...

    def fail_all(self, error: EngineUnavailable) -> Sequence[Any]:
        """Gives up everything; returns what `deliver` is to be called with."""
        ...

    def deliver(self, results: Sequence[Any]) -> None:
        """Takes the results of a step, on the event loop."""
        ...


class DeviceThread:
    """Owns the thread and its inbox. `submit`, `start` and `stop` are called on the event loop.

    Invariants: messages are applied in the order of submission; after `is_dead` nothing is stepped any more, and what
    was submitted before fails.
    """

    def __init__(self, engines: Sequence[StepEngine], clock: Callable[[], float] = time.monotonic) -> None:
        self._engines = tuple(engines)
        self._clock = clock
        self._outbox: list[tuple[StepEngine, Any]] = []  # submitted in this round of the loop; the loop's alone
        self._inbox: SimpleQueue[list[tuple[StepEngine, Any]]] = SimpleQueue()  # what rounds of the loop submitted
        self._messages: deque[tuple[StepEngine, Any]] = deque()  # out of the inbox and not applied yet; the thread's
        self._is_stopping = False
        self._busy_since_s: float | None = None
        self._last_step_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="guardwire-device", daemon=True)
        self.is_dead = False
        self.num_steps = 0  # that are over, well or not; whoever reads it sees whether the thread gets on

    def start(self) -> None:
        """Starts the thread; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._send_out()
        self._thread.start()

    def submit(self, engine: StepEngine, message: object) -> None:
        """Hands a message to an engine, with all others of this round of the event loop.

        Raises:
            EngineUnavailable: If the device is lost or the thread has stopped.
        """
        if self.is_dead:
            raise self._unavailable()
        if not self._outbox and self._loop is not None:
            self._loop.call_soon(self._send_out)
        self._outbox.append((engine, message))

    @property
    def newest(self) -> object | None:
        """The message that was submitted last, if it has not left yet: in this round more may be added to it."""
        return self._outbox[-1][1] if self._outbox else None

    def busy_for_s(self) -> float:
        """How long the present step has been running; 0 between steps."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else self._clock() - since_s

    async def stop(self, timeout_s: float) -> bool:
        """Ends the thread after its present step, failing what is pending; False if it did not end in time."""
        self._is_stopping = True
        self._inbox.put([])  # wakes it
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, timeout_s)
        return not self._thread.is_alive()

    def _send_out(self) -> None:
        if self._outbox:
            self._inbox.put(self._outbox)
            self._outbox = []

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._wait_for_work()
                self._apply_messages()
                self._gather()
                for engine in self._engines:
                    if engine.has_work:
                        self._step(engine)
        except BaseException:
            logger.exception("the device thread died")
        self._die()

    def _wait_for_work(self) -> None:
        if not (self._is_stopping or any(engine.has_work for engine in self._engines)):
            self._messages += self._inbox.get()

    def _gather(self) -> None:
        """Waits a little for callers that were just answered, so that they share the next step."""
        wait_s = GATHER_SHARE * self._last_step_s
        if wait_s < MIN_GATHER_S:
            return
        deadline_s = self._clock() + wait_s
        while any(engine.expects_more for engine in self._engines):
            left_s = deadline_s - self._clock()
            if left_s <= 0 or self._is_stopping:
                return
            with contextlib.suppress(Empty):
                self._messages += self._inbox.get(timeout=left_s)
            self._apply_messages()

    def _apply_messages(self) -> None:
        """Applies what was submitted, and what is being submitted meanwhile: it need not wait for another step."""
        has_applied = False
        while submitted := self._next_message():
            engine, message = submitted
            engine.apply(message)
            has_applied = True
        if has_applied:
            for engine in self._engines:
                engine.update_load()

    def _next_message(self) -> tuple[StepEngine, Any] | None:
        while not self._messages and not self._inbox.empty():  # nobody else takes from it
            self._messages += self._inbox.get()
        return self._messages.popleft() if self._messages else None

    def _step(self, engine: StepEngine) -> None:
        started_s = self._busy_since_s = self._clock()
        try:
            results = engine.step()
        finally:
            self._busy_since_s = None
            self.num_steps += 1
        self._last_step_s = self._clock() - started_s
        self._hand_over(engine, results)
        if engine.num_consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            raise RuntimeError(f"{engine.num_consecutive_failures} steps in a row failed")

    def _die(self) -> None:
        self.is_dead = True
        self._fail_everything()
        self._call_on_loop(self._bury)

    def _bury(self) -> None:
        """On the loop, when the thread has touched the engines for the last time: what came too late for it fails."""
        self._send_out()
        self._fail_everything()

    def _fail_everything(self) -> None:
        """What was submitted before the end became known must fail too, not wait for ever."""
        while self._messages or not self._inbox.empty():
            try:
                self._apply_messages()
            except Exception:
                logger.exception("a message could not be applied any more")
        for engine in self._engines:
            self._hand_over(engine, engine.fail_all(self._unavailable()))

    def _unavailable(self) -> EngineUnavailable:
        if self._is_stopping:
            return EngineUnavailable("STOPPED", "the server has stopped")
        return EngineUnavailable("DEVICE_LOST", "the device is lost; this server judges nothing any more")

    def _hand_over(self, engine: StepEngine, results: Sequence[Any]) -> None:
        if results:
            self._call_on_loop(engine.deliver, results)

    def _call_on_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None  # the thread was started on it
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._is_stopping = True
