"""The generative model's side of the device thread: prompts in, greedy answers out, all running calls in one batch.

An answer is guessed and verified instead of decoded token by token (core.answer_drafts): a pass over the prompt and a
guessed answer gives the model's own choice after every token. Up to the first wrong guess these are exactly the choices
of greedy decoding; there the sequence is cut, and goes on with the model's token and another guess.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from guardwire_server.core.answer import MAX_ANSWER_TOKENS
from guardwire_server.core.answer_drafts import AnswerDrafts
from guardwire_server.core.errors import DeadlinePassed, EngineUnavailable, RequestError
from guardwire_server.core.observation import EngineLoad, StepObserver
from guardwire_server.core.scheduler import Scheduler
from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import RiskProbabilities
from guardwire_server.engine.backend import GenBackend, GenReadings
from guardwire_server.engine.faults import step_failed
from guardwire_server.engine.step_watch import StepWatch


@dataclass(frozen=True, slots=True)
class StartCall:
    """Answer a templated prompt before `deadline_s`, a time of the engine's clock (None: no deadline).

    `expects_refusal`: whether the prompt asks about an answer, so that the verdict has a line more.
    """

    call_id: int
    prompt_ids: "array[int]"
    expects_refusal: bool
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
    num_prompt_tokens: int
    drafts: AnswerDrafts
    deadline_s: float | None
    answer_ids: list[int] = field(default_factory=list)
    fed_ids: list[int] = field(
        default_factory=list
    )  # the answer as the model was given it: chosen tokens, then guesses
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
        observer: StepObserver | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._on_results = on_results
        self._clock = clock
        self._calls: dict[int, _Call] = {}
        self._drafts = {mode: AnswerDrafts(answers) for mode, answers in backend.likely_answers.items()}
        self._watch = StepWatch("gen", observer)
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
            self._watch.arrived(message.call_id)
            drafts = self._drafts[message.expects_refusal]
            call = _Call(len(message.prompt_ids), drafts, message.deadline_s)
            self._calls[message.call_id] = call
            self._scheduler.add(message.call_id)
            self._scheduler.extend(message.call_id, message.prompt_ids[:-1], bytes(len(message.prompt_ids) - 1))
            self._feed(message.call_id, call, message.prompt_ids[-1])
        else:
            self._remove(message.call_id)

    def update_load(self) -> None:
        """Tells the load anew; once for all messages that were applied."""
        self.load = self.load.after(self._scheduler)

    def step(self) -> Sequence[CallResult]:
        """Drops the calls whose deadline is over, then runs one step for the others."""
        results = self._drop_expired()
        self._watch.begun()
        plan = self._scheduler.schedule()
        if not plan.chunks:
            self.update_load()
            return results
        try:
            readings = self._backend.step(plan)
        except Exception:
            self.num_consecutive_failures += 1
            error = step_failed(len(plan.chunks))
            results += [self._finish(chunk.seq_id, error) for chunk in plan.chunks]
            self._watch.done(plan, has_failed=True)
            self.update_load()
            return results
        self.num_consecutive_failures = 0
        self._scheduler.complete(plan)
        results += self._advance(plan, readings)
        self.load = self.load.after(self._scheduler, plan)
        self._watch.done(plan)
        return results

    def fail_all(self, error: EngineUnavailable) -> Sequence[CallResult]:
        """Gives up every call."""
        results = [self._finish(call_id, error) for call_id in tuple(self._calls)]
        self.update_load()
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
            first_read, num_read = num_read, num_read + chunk.reads.count(Read.LOGITS)
            for index in range(first_read, num_read):
                token_id = self._choose(call, readings, index)
                if token_id in self._backend.end_ids or len(call.answer_ids) >= MAX_ANSWER_TOKENS:
                    results.append(self._answer(chunk.seq_id, call))
                    break
                if call.fed_ids[len(call.answer_ids) - 1 : len(call.answer_ids)] != [token_id]:
                    self._scheduler.truncate(chunk.seq_id, call.num_prompt_tokens + len(call.answer_ids) - 1, epoch=0)
                    self._feed(chunk.seq_id, call, token_id)
                    break
        return results

    def _choose(self, call: _Call, readings: GenReadings, index: int) -> int:
        """Appends the token that the model chooses after what is settled of the answer."""
        if tuple(call.answer_ids) == self._backend.verdict_prefix:
            call.probabilities = RiskProbabilities(*readings.verdict_probabilities[3 * index : 3 * index + 3])
        token_id = readings.next_ids[index]
        call.answer_ids.append(token_id)
        return token_id

    def _feed(self, call_id: int, call: _Call, token_id: int) -> None:
        """Gives the model a settled token and a guess at the rest of the answer, but for its last token."""
        guess = call.drafts.draft(call.answer_ids)[:-1]
        call.fed_ids = [*call.answer_ids, *guess]
        ids = array("i", (token_id, *guess))
        self._scheduler.extend(call_id, ids, bytes((Read.LOGITS,)) * len(ids))

    def _answer(self, call_id: int, call: _Call) -> CallResult:
        """Ends a call that has its answer; the prompt's keys and values stay, for prompts that begin like it."""
        call.drafts.count(call.answer_ids)
        self._calls.pop(call_id)
        self._scheduler.retire(call_id, call.num_prompt_tokens)
        return call_id, GeneratedAnswer(tuple(call.answer_ids), call.probabilities, call.num_passes)

    def _finish(self, call_id: int, outcome: GeneratedAnswer | RequestError) -> CallResult:
        self._remove(call_id)
        return call_id, outcome

    def _remove(self, call_id: int) -> None:
        self._calls.pop(call_id, None)
        self._watch.waits_no_more(call_id)
        self._scheduler.remove(call_id)
