"""The stream model's side of the device thread: sequences in, verdicts out."""

import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from guardwire_server.core.errors import EngineUnavailable
from guardwire_server.core.events import (
    EngineEvent,
    ExtendSequence,
    PromptJudged,
    SequenceFailed,
    TokensJudged,
    TruncateSequence,
)
from guardwire_server.core.observation import EngineLoad, StepObserver
from guardwire_server.core.scheduler import Scheduler
from guardwire_server.core.step_plan import ONE_RESPONSE, Chunk, Read, StepPlan
from guardwire_server.core.verdict import VerdictArrays
from guardwire_server.engine.backend import StreamBackend, StreamReadings
from guardwire_server.engine.faults import step_failed
from guardwire_server.engine.step_watch import StepWatch


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """Begin an empty sequence."""


@dataclass(frozen=True, slots=True)
class CloseSequence:
    """Forget a sequence and all that is pending of it."""


SequenceCommand = OpenSequence | CloseSequence | ExtendSequence | TruncateSequence


class SequenceMessage(NamedTuple):
    """A command for one sequence."""

    seq_id: int
    command: SequenceCommand


class TokenStep(NamedTuple):
    """Tokens of answers, each of the sequence at its place, in order; a sequence may have several."""

    seq_ids: list[int]
    token_ids: "array[int]"


class SingleTokensJudged(NamedTuple):
    """The verdicts on one token of each of many sequences: the same as a `TokensJudged` for each.

    `verdicts` holds one entry for each of `chunks`, which are those of the step's plan: nothing is made for each.
    """

    chunks: tuple[Chunk, ...]
    verdicts: VerdictArrays

    def event(self, entry: int) -> TokensJudged:
        """What became of the sequence of the chunk at `entry`."""
        chunk = self.chunks[entry]
        return TokensJudged(chunk.epoch, chunk.start, self.verdicts.slice(entry, entry + 1))


StepEvent = tuple[int, EngineEvent] | SingleTokensJudged
"""A sequence's id and what became of it, or what became of many."""


class StreamEngine:
    """Owns the scheduler. Thread: the device thread; `deliver` alone is called on the event loop.

    Invariant: a sequence's events come in the order of its positions, and none comes after its failure.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        backend: StreamBackend,
        on_events: Callable[[Sequence[StepEvent]], None],
        observer: StepObserver | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._on_events = on_events
        self._seq_ids: set[int] = set()
        self._expected: set[int] = set()  # whom the last step answered and who has sent nothing since
        self._watch = StepWatch("stream", observer)
        self.num_consecutive_failures = 0
        self.load = EngineLoad()

    @property
    def has_work(self) -> bool:
        """Whether any token is pending."""
        return self._scheduler.has_work

    @property
    def expects_more(self) -> bool:
        """Whether somebody whom the last step answered has not sent anything since."""
        return bool(self._expected)

    def apply(self, message: SequenceMessage | TokenStep) -> None:
        """Takes a command; one for a sequence that failed meanwhile is passed over."""
        if isinstance(message, TokenStep):
            self._append(message)
        else:
            self._apply(*message)

    def update_load(self) -> None:
        """Tells the load anew; once for all messages that were applied."""
        self.load = self.load.after(self._scheduler)

    def step(self) -> Sequence[StepEvent]:
        """Runs one step. A backend that raises costs the sequences of the step and no others."""
        self._watch.begun()
        plan = self._scheduler.schedule(expects_short=self.expects_more)
        try:
            readings = self._backend.step(plan)
            events = list(_events(plan, readings))
        except Exception:
            self.num_consecutive_failures += 1
            self._watch.done(plan, has_failed=True)
            return self._fail(plan)
        self.num_consecutive_failures = 0
        self._scheduler.complete(plan)
        self._expected = {chunk.seq_id for chunk in plan.chunks} - self._scheduler.waiting_ids
        self.load = self.load.after(self._scheduler, plan, readings.responses.count_by_level())
        self._watch.done(plan)
        return events

    def fail_all(self, error: EngineUnavailable) -> Sequence[StepEvent]:
        """Gives up every sequence."""
        events = [(seq_id, SequenceFailed(error)) for seq_id in self._seq_ids]
        for seq_id in tuple(self._seq_ids):
            self._remove(seq_id)
        self.update_load()
        return events

    def deliver(self, results: Sequence[StepEvent]) -> None:
        """Passes a step's events on, on the event loop."""
        self._on_events(results)

    def _append(self, step: TokenStep) -> None:
        known = self._seq_ids
        tokens = [token for token in zip(*step, strict=True) if token[0] in known]
        if tokens:
            self._watch.arrived(tokens[0][0])
            self._expected.difference_update(step.seq_ids)
            self._scheduler.append(tokens, Read.RESPONSE)

    def _apply(self, seq_id: int, command: SequenceCommand) -> None:
        if isinstance(command, OpenSequence):
            self._scheduler.add(seq_id)
            self._seq_ids.add(seq_id)
        elif seq_id not in self._seq_ids:
            return
        elif isinstance(command, ExtendSequence):
            self._expected.discard(seq_id)
            self._watch.arrived(seq_id)
            self._scheduler.extend(seq_id, command.ids, command.reads)
        elif isinstance(command, TruncateSequence):
            self._scheduler.truncate(seq_id, command.num_tokens, command.epoch)
            if seq_id not in self._scheduler.waiting_ids:
                self._watch.waits_no_more(seq_id)
        else:
            self._remove(seq_id)

    def _fail(self, plan: StepPlan) -> Sequence[StepEvent]:
        error = step_failed(len(plan.chunks))
        events = [(chunk.seq_id, SequenceFailed(error)) for chunk in plan.chunks]
        for chunk in plan.chunks:
            self._remove(chunk.seq_id)
        self.update_load()
        return events

    def _remove(self, seq_id: int) -> None:
        self._seq_ids.discard(seq_id)
        self._expected.discard(seq_id)
        self._watch.waits_no_more(seq_id)
        self._scheduler.remove(seq_id)


def _events(plan: StepPlan, readings: StreamReadings) -> Iterator[StepEvent]:
    """Deals the readings of a step out to its sequences, one event per run of consecutive readings.

    Those of neighbours that have a single one each are one event.

    Raises:
        ValueError: There are not as many readings as the plan asks for; whose they are is not known then.
    """
    responses = readings.responses
    num_responses = num_queries = 0
    for reads, group in itertools.groupby(plan.chunks, attrgetter("reads")):
        chunks = tuple(group)
        if reads == ONE_RESPONSE:
            yield SingleTokensJudged(chunks, responses.slice(num_responses, num_responses + len(chunks)))
            num_responses += len(chunks)
            continue
        for chunk, (start, stop, read) in itertools.product(chunks, _runs(reads)):
            position = chunk.start + start
            if read == Read.RESPONSE:
                verdicts = responses.slice(num_responses, num_responses + stop - start)
                num_responses += stop - start
                yield chunk.seq_id, TokensJudged(chunk.epoch, position, verdicts)
            elif read == Read.QUERY:
                yield chunk.seq_id, PromptJudged(chunk.epoch, position, readings.queries[num_queries])
                num_queries += 1
    if (num_responses, num_queries) != (len(responses), len(readings.queries)):
        found = f"{len(responses)} answer tokens and {len(readings.queries)} user turns"
        raise ValueError(f"{found} were judged, not {num_responses} and {num_queries}")


def _runs(reads: bytes) -> Iterator[tuple[int, int, int]]:
    """Runs (start, stop, read) of equal codes; a query is always a run of its own."""
    start = 0
    while start < len(reads):
        read = reads[start]
        stop = start + 1
        while read != Read.QUERY and stop < len(reads) and reads[stop] == read:
            stop += 1
        yield start, stop, read
        start = stop
