"""The generative model's side of the device thread: prompts in, greedy answers out, all running calls in one batch."""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from guardwire_server.core.answer import MAX_ANSWER_TOKENS
from guardwire_server.core.errors import DeadlinePassed, EngineUnavailable, RequestError
from guardwire_server.core.scheduler import Read, Scheduler, StepPlan
from guardwire_server.core.verdict import RiskProbabilities
from guardwire_server.engine.backend import GenBackend, GenReadings
from guardwire_server.engine.device_thread import EngineLoad
from guardwire_server.engine.faults import step_failed


@dataclass(frozen=True, slots=True)
class StartCall:
    """Answer a templated prompt before `deadline_s`, a time of the engine's clock (None: no deadline)."""

    call_id: int
    prompt_ids: "array[int]"
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Nobody waits for the answer any more."""

    call_id: int


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """A greedy answer: its ids, the end token included if it came.

    `probabilities` are those of the three risk levels where the answer chose between them; None if it never came to
    that choice. `num_passes` counts the steps that the call took part in.
    """

    token_ids: tuple[int, ...]
    probabilities: RiskProbabilities | None
    num_passes: int


CallResult = tuple[int, GeneratedAnswer | RequestError]
"""A call's id and what became of it."""


@dataclass(slots=True)
class _Call:
    deadline_s: float | None
    answer_ids: list[int] = field(default_factory=list)
    probabilities: RiskProbabilities | None = None
    num_passes: int = 0


class GenEngine:
    """Owns the scheduler and the running calls. Thread: the device thread; `deliver` alone is called on the event loop.

    Invariant: every call that was started and not cancelled gets exactly one result.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: GenBackend,
        on_results: Callable[[Sequence[CallResult]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._on_results = on_results
        self._clock = clock
        self._calls: dict[int, _Call] = {}
        self.num_consecutive_failures = 0
        self.load = EngineLoad()

    @property
    def has_work(self) -> bool:
        """Whether any call runs."""
        return self._scheduler.has_work

    @property
    def expects_more(self) -> bool:
        """Never: a call extends itself, within the step that answers it."""
        return False

    def apply(self, message: StartCall | CancelCall) -> None:
        """Takes a message; a cancellation of a call that is over is passed over."""
        if isinstance(message, StartCall):
            self._calls[message.call_id] = _Call(message.deadline_s)
            self._scheduler.add(message.call_id)
            reads = bytes(len(message.prompt_ids) - 1) + bytes((Read.LOGITS,))
            self._scheduler.extend(message.call_id, message.prompt_ids, reads)
        else:
            self._remove(message.call_id)
        self._update_load(None)

    def step(self) -> Sequence[CallResult]:
        """Drops the calls whose deadline is over, then runs one step for the others."""
        results = self._drop_expired()
        plan = self._scheduler.schedule()
        if not plan.chunks:
            self._update_load(None)
            return results
        try:
            readings = self._backend.step(plan)
        except Exception:
            self.num_consecutive_failures += 1
            error = step_failed(len(plan.chunks))
            results += [self._finish(chunk.seq_id, error) for chunk in plan.chunks]
            self._update_load(None)
            return results
        self.num_consecutive_failures = 0
        self._scheduler.complete(plan)
        results += self._advance(plan, readings)
        self._update_load(plan)
        return results

    def fail_all(self, error: EngineUnavailable) -> Sequence[CallResult]:
        """Gives up every call."""
        results = [self._finish(call_id, error) for call_id in tuple(self._calls)]
        self._update_load(None)
        return results

    def deliver(self, results: Sequence[CallResult]) -> None:
        """Passes a step's results on, on the event loop."""
        self._on_results(results)

    def _drop_expired(self) -> list[CallResult]:
        now_s = self._clock()
        expired = [
            call_id for call_id, call in self._calls.items() if call.deadline_s is not None and call.deadline_s <= now_s
        ]
        error = DeadlinePassed("DEADLINE_EXCEEDED", "the call's deadline passed before it was judged")
        return [self._finish(call_id, error) for call_id in expired]

    def _advance(self, plan: StepPlan, readings: GenReadings) -> list[CallResult]:
        """Appends each call's next token; returns the calls that are over."""
        results: list[CallResult] = []
        num_read = 0
        for chunk in plan.chunks:
            call = self._calls[chunk.seq_id]
            call.num_passes += 1
            if chunk.reads[-1] != Read.LOGITS:
                continue
            token_id = readings.next_ids[num_read]
            if tuple(call.answer_ids) == self._backend.verdict_prefix:
                call.probabilities = RiskProbabilities(*readings.verdict_probabilities[3 * num_read : 3 * num_read + 3])
            num_read += 1
            call.answer_ids.append(token_id)
            if token_id in self._backend.end_ids or len(call.answer_ids) >= MAX_ANSWER_TOKENS:
                answer = GeneratedAnswer(tuple(call.answer_ids), call.probabilities, call.num_passes)
                results.append(self._finish(chunk.seq_id, answer))
            else:
                self._scheduler.extend(chunk.seq_id, array("i", (token_id,)), bytes((Read.LOGITS,)))
        return results

    def _finish(self, call_id: int, outcome: GeneratedAnswer | RequestError) -> CallResult:
        self._remove(call_id)
        return call_id, outcome

    def _remove(self, call_id: int) -> None:
        self._calls.pop(call_id, None)
        self._scheduler.remove(call_id)

    def _update_load(self, plan: StepPlan | None) -> None:
        before, scheduler = self.load, self._scheduler
        self.load = EngineLoad(
            num_sequences=scheduler.num_sequences,
            num_pending_tokens=scheduler.num_pending_tokens,
            arena_used=scheduler.arena_used,
            num_steps=before.num_steps + (plan is not None),
            num_step_sequences=before.num_step_sequences + (len(plan.chunks) if plan else 0),
            num_step_tokens=before.num_step_tokens + (plan.num_tokens if plan else 0),
            num_evictions=scheduler.num_evictions,
        )
