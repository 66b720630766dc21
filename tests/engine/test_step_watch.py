from array import array

import pytest

from guardwire_server.core.events import TruncateSequence
from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.observation import StepReport
from guardwire_server.core.step_plan import Chunk, StepPlan
from guardwire_server.engine.step_watch import StepWatch
from guardwire_server.engine.stream_engine import OpenSequence, SequenceMessage, StepEvent, StreamEngine, TokenStep
from tests.engine.fakes import FakeStreamBackend, ManualClock, scheduler
from tests.engine.observers import RememberedSteps
from tests.engine.test_stream_engine import extend


def plan(*seq_ids: int) -> StepPlan:
    return StepPlan((), tuple(Chunk(seq_id, 0, 0, array("i", [5]), b"\1", Extent(0, 64)) for seq_id in seq_ids))


class Watched:
    """A watch with its clock and what it tells."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.steps = RememberedSteps()
        self.watch = StepWatch("stream", self.steps, self.clock)

    def step(self, *seq_ids: int, duration_s: float = 1.0, has_failed: bool = False) -> None:
        self.watch.begun()
        self.clock.advance(duration_s)
        self.watch.done(plan(*seq_ids), has_failed=has_failed)


def test_a_step_is_told_with_its_duration_and_plan() -> None:
    watched = Watched()
    watched.step(1, 2, duration_s=0.25, has_failed=True)
    (report,) = watched.steps.reports
    assert (report.model_kind, report.duration_s, report.has_failed) == ("stream", 0.25, True)
    assert report.plan == plan(1, 2)
    assert report.queue_wait_s is None


def test_the_wait_ends_when_the_step_that_takes_the_sequence_begins() -> None:
    watched = Watched()
    watched.watch.arrived(1)
    watched.clock.advance(3.0)
    watched.step(2)  # not the one that waits
    watched.step(1, 2)
    assert [report.queue_wait_s for report in watched.steps.reports] == [None, 4.0]


def test_one_sequence_is_followed_at_a_time() -> None:
    watched = Watched()
    watched.watch.arrived(1)
    watched.clock.advance(1.0)
    watched.watch.arrived(2)
    watched.step(2)
    watched.step(1)
    watched.watch.arrived(2)
    watched.step(2)
    assert [report.queue_wait_s for report in watched.steps.reports] == [None, 2.0, 0.0]


def test_a_sequence_that_is_removed_makes_room_for_another() -> None:
    watched = Watched()
    watched.watch.arrived(1)
    watched.watch.waits_no_more(2)
    watched.watch.waits_no_more(1)
    watched.clock.advance(1.0)
    watched.watch.arrived(2)
    watched.step(1, 2)
    assert watched.steps.reports[0].queue_wait_s == 0.0


def test_nothing_is_measured_when_nobody_listens() -> None:
    watch = StepWatch("gen", None, clock=lambda: 1 // 0)
    watch.arrived(1)
    watch.begun()
    watch.done(plan(1))


def test_an_observer_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def step_done(self, report: StepReport) -> None:
            raise KeyError("a bug")

    watch = StepWatch("stream", Broken())
    watch.begun()
    watch.done(plan(1))
    assert caplog.messages == ["a step could not be recorded"]


def test_what_a_rollback_takes_away_waits_no_more() -> None:
    steps = RememberedSteps()
    delivered: list[StepEvent] = []
    engine = StreamEngine(scheduler(4, 256), FakeStreamBackend(1024), delivered.extend, steps)
    for command in (OpenSequence(), extend(20, 21), TruncateSequence(0, 1)):
        engine.apply(SequenceMessage(1, command))
    for command in (OpenSequence(), extend(30)):
        engine.apply(SequenceMessage(2, command))
    engine.step()
    (report,) = steps.reports
    assert report.queue_wait_s is not None  # of the second sequence: the first one is not waited for


def test_a_step_for_sequences_that_have_failed_is_not_waited_for() -> None:
    steps, backend = RememberedSteps(), FakeStreamBackend(1024)
    engine = StreamEngine(scheduler(4, 256), backend, list[StepEvent]().extend, steps)
    for seq_id in (1, 2):
        for command in (OpenSequence(), extend(20)):
            engine.apply(SequenceMessage(seq_id, command))
    backend.num_failures_to_come = 1
    engine.step()
    engine.apply(TokenStep([1, 2], array("i", (21, 21))))  # was on its way
    engine.apply(SequenceMessage(3, OpenSequence()))
    engine.apply(TokenStep([1, 3], array("i", (22, 30))))
    engine.step()
    assert steps.reports[-1].queue_wait_s is not None
