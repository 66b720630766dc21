from collections.abc import Sequence

import pytest

from guardwire_server.core.errors import EngineError, EngineUnavailable
from guardwire_server.core.events import (
    EngineEvent,
    ExtendSequence,
    PromptJudged,
    SequenceFailed,
    TokensJudged,
    TruncateSequence,
)
from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.engine.backend import StreamReadings
from guardwire_server.engine.stream_engine import (
    CloseSequence,
    OpenSequence,
    SequenceMessage,
    SingleTokensJudged,
    StepEvent,
    StreamEngine,
)
from tests.core.fakes import ids, model_verdict, packed
from tests.engine.fakes import FakeStreamBackend, scheduler

NOTHING, RESPONSE, QUERY = Read.NOTHING, Read.RESPONSE, Read.QUERY


class Harness:
    """A stream engine with its backend; what it delivers is kept."""

    def __init__(self, limits: SchedulerLimits | None = None, num_roots: int = 4, root_tokens: int = 256) -> None:
        self.backend = FakeStreamBackend(num_roots * root_tokens)
        self.delivered: list[StepEvent] = []
        self.engine = StreamEngine(scheduler(num_roots, root_tokens, limits), self.backend, self.delivered.extend)

    def send(self, seq_id: int, *commands: OpenSequence | CloseSequence | ExtendSequence | TruncateSequence) -> None:
        for command in commands:
            self.engine.apply(SequenceMessage(seq_id, command))
        self.engine.update_load()

    def begin(self, seq_id: int, *token_ids: int) -> None:
        """Opens a sequence of tokens that are all to be judged."""
        self.send(seq_id, OpenSequence(), extend(*token_ids))

    def step(self) -> list[tuple[int, EngineEvent]]:
        """The events of one step, each with its sequence."""
        events: list[tuple[int, EngineEvent]] = []
        for event in self.engine.step():
            if isinstance(event, SingleTokensJudged):
                events += [(chunk.seq_id, event.event(entry)) for entry, chunk in enumerate(event.chunks)]
            else:
                events.append(event)
        return events

    def run(self) -> list[tuple[int, EngineEvent]]:
        """Steps until nothing is pending; returns all events."""
        events: list[tuple[int, EngineEvent]] = []
        while self.engine.has_work:
            events += self.step()
        return events


def extend(*token_ids: int, reads: Sequence[Read] = ()) -> ExtendSequence:
    return ExtendSequence(ids(*token_ids), bytes(reads or (RESPONSE,) * len(token_ids)))


def judged(epoch: int, position: int, *contexts: Sequence[int]) -> TokensJudged:
    return TokensJudged(epoch, position, packed(model_verdict(context) for context in contexts))


def events_of(seq_id: int, events: Sequence[tuple[int, EngineEvent]]) -> list[EngineEvent]:
    return [event for other, event in events if other == seq_id]


def test_readings_become_events_at_their_positions() -> None:
    harness = Harness()
    harness.send(1, OpenSequence(), extend(20, 21, 22, reads=(NOTHING, QUERY, NOTHING)), extend(23, 24))
    harness.send(2, OpenSequence(), extend(30, 31, reads=(QUERY, QUERY)))
    events = harness.step()
    assert events_of(1, events) == [
        PromptJudged(0, 1, model_verdict([20, 21], is_query=True)),
        judged(0, 3, [20, 21, 22, 23], [20, 21, 22, 23, 24]),
    ]
    assert events_of(2, events) == [
        PromptJudged(0, 0, model_verdict([30], is_query=True)),
        PromptJudged(0, 1, model_verdict([30, 31], is_query=True)),
    ]
    assert not harness.engine.has_work


def test_neighbours_with_one_reading_each_share_an_event() -> None:
    harness = Harness()
    for seq_id, token_ids in enumerate(([20], [21], [22, 23], [24])):
        harness.begin(seq_id, *token_ids)
    first, second, third = harness.engine.step()
    assert isinstance(first, SingleTokensJudged)
    assert isinstance(third, SingleTokensJudged)
    assert [chunk.seq_id for chunk in first.chunks] == [0, 1]
    assert [first.event(entry) for entry in range(2)] == [judged(0, 0, [20]), judged(0, 0, [21])]
    assert second == (2, judged(0, 0, [22], [22, 23]))
    assert [chunk.seq_id for chunk in third.chunks] == [3]
    assert third.event(0) == judged(0, 0, [24])


def test_after_a_truncation_results_carry_its_epoch() -> None:
    harness = Harness()
    harness.begin(1, 20, 21, 22)
    assert harness.run() == [(1, judged(0, 0, [20], [20, 21], [20, 21, 22]))]
    harness.send(1, TruncateSequence(1, epoch=4), extend(30))
    assert harness.run() == [(1, judged(4, 1, [20, 30]))]


def test_a_long_sequence_is_judged_in_several_steps() -> None:
    harness = Harness(SchedulerLimits(max_num_batched_tokens=4, short_extend_tokens=2))
    harness.begin(1, *range(20, 30))
    positions = [event.position for _, event in harness.run() if isinstance(event, TokensJudged)]
    assert positions == [0, 4, 8]


def test_evictions_do_not_show() -> None:
    harness = Harness(num_roots=1, root_tokens=64)
    for seq_id in (1, 2, 3):
        harness.begin(seq_id, *range(seq_id, seq_id + 30))
    harness.run()
    for seq_id in (3, 1, 2):
        harness.send(seq_id, extend(7))
    events = harness.run()
    for seq_id in (1, 2, 3):
        assert events_of(seq_id, events) == [judged(0, 30, [*range(seq_id, seq_id + 30), 7])]
    assert harness.engine.load.num_evictions == 4


def test_a_failing_step_costs_its_sequences_and_no_others(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(SchedulerLimits(max_num_seqs=1))
    harness.begin(1, 20)
    harness.begin(2, 20)
    harness.backend.num_failures_to_come = 1
    ((seq_id, event),) = harness.step()
    assert seq_id == 1
    assert isinstance(event, SequenceFailed)
    error = event.error
    assert isinstance(error, EngineError)
    assert (error.reason, harness.engine.num_consecutive_failures) == ("STEP_FAILED", 1)
    assert error.request_id in caplog.text
    assert "BackendFault" in caplog.text
    assert "BackendFault" not in error.message
    assert harness.run() == [(2, judged(0, 0, [20]))]
    assert harness.engine.num_consecutive_failures == 0


@pytest.mark.parametrize("token_ids", [(20,), (20, 21)])
def test_a_step_with_readings_of_too_few_tokens_has_failed(
    token_ids: Sequence[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose readings they are cannot be told; what was not judged must not pass."""
    harness = Harness()
    harness.begin(1, *token_ids)
    harness.begin(2, *token_ids)
    readings = StreamReadings(packed([model_verdict(token_ids)]), packed(()))
    monkeypatch.setattr(harness.backend, "step", lambda _plan: readings)
    assert [(seq_id, type(event)) for seq_id, event in harness.step()] == [(1, SequenceFailed), (2, SequenceFailed)]
    assert f"not {2 * len(token_ids)} and 0" in caplog.text


def test_commands_for_a_failed_sequence_are_passed_over() -> None:
    harness = Harness()
    harness.begin(1, 20)
    harness.backend.num_failures_to_come = 1
    harness.step()
    harness.send(1, extend(21), TruncateSequence(0, 1), CloseSequence())
    assert harness.run() == []
    assert harness.engine.load == EngineLoad(num_steps=0)


def test_closing_forgets_what_is_pending() -> None:
    harness = Harness()
    harness.begin(1, 20)
    harness.send(1, CloseSequence(), CloseSequence())
    assert not harness.engine.has_work
    assert harness.engine.load == EngineLoad()


def test_giving_everything_up() -> None:
    harness = Harness()
    harness.begin(1, 20)
    harness.begin(2, 20)
    harness.run()
    error = EngineUnavailable("LOST", "lost")
    assert harness.engine.fail_all(error) == [(1, SequenceFailed(error)), (2, SequenceFailed(error))]
    assert harness.engine.fail_all(error) == []
    assert harness.engine.load.num_sequences == 0


def test_deliver_passes_events_on() -> None:
    harness = Harness()
    harness.begin(1, 20)
    events = harness.step()
    assert harness.delivered == []
    harness.engine.deliver(events)
    assert harness.delivered == events


def test_the_load_counts_steps_sequences_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(SchedulerLimits(max_num_batched_tokens=4, short_extend_tokens=4))
    harness.begin(1, 20, 21, 22)
    harness.begin(2, 30, 31)
    during: list[EngineLoad] = []
    step_backend = harness.backend.step

    def step(plan: StepPlan) -> StreamReadings:
        during.append(harness.engine.load)
        return step_backend(plan)

    monkeypatch.setattr(harness.backend, "step", step)
    harness.step()
    assert during == [EngineLoad(num_sequences=2, num_pending_tokens=5)]
    assert harness.engine.load == EngineLoad(2, 1, 128 / 1024, 1, 2, 4, 0, num_judged=(3, 0, 1))
    harness.step()
    assert harness.engine.load == EngineLoad(2, 0, 128 / 1024, 2, 3, 5, 0, num_judged=(3, 0, 2))
