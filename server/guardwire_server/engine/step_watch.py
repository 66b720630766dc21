"""How long steps take, and how long sequences wait for them."""

import logging
import time
from collections.abc import Callable

from guardwire_server.core.observation import StepObserver, StepReport
from guardwire_server.core.step_plan import StepPlan

logger = logging.getLogger(__name__)


class StepWatch:
    """Measures the steps of one engine. Owner: the engine. Thread: the device thread.

    The wait is measured on one sequence at a time: the first one that gets something to wait for after the one before
    it has been served. That costs the same whether a step takes one sequence or hundreds, and what comes first after a
    step was planned waits longest for the next, so the sample errs to the long side.
    """

    def __init__(
        self, model_kind: str, observer: StepObserver | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model_kind = model_kind
        self._observer = observer
        self._clock = clock
        self._sample: tuple[int, float] | None = None
        self._started_s = 0.0

    def arrived(self, seq_id: int) -> None:
        """A sequence has got tokens to be judged."""
        if self._sample is None and self._observer is not None:
            self._sample = seq_id, self._clock()

    def waits_no_more(self, seq_id: int) -> None:
        """A sequence is gone, or what it waited for is."""
        if self._sample is not None and self._sample[0] == seq_id:
            self._sample = None

    def begun(self) -> None:
        """A step begins."""
        if self._observer is not None:
            self._started_s = self._clock()

    def done(self, plan: StepPlan, *, has_failed: bool = False) -> None:
        """The step that has begun is over; `plan` is what it was to do."""
        if self._observer is None:
            return
        queue_wait_s = None
        if self._sample is not None:
            seq_id, since_s = self._sample
            if any(chunk.seq_id == seq_id for chunk in plan.chunks):
                queue_wait_s = self._started_s - since_s
                self._sample = None
        duration_s = self._clock() - self._started_s
        report = StepReport(self._model_kind, duration_s, queue_wait_s, plan, has_failed)
        try:
            self._observer.step_done(report)
        except Exception:  # a fault of whoever watches must not cost the device
            logger.exception("a step could not be recorded")
