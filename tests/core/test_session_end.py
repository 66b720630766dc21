"""How streams end: in good order, with an error, and by the clock."""

from dataclasses import replace

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import Abandoned, EngineError, InvalidField, OutOfRange, StreamTimeout, WrongState
from guardwire_server.core.policy import Action, DecisionReason
from guardwire_server.core.ports import SessionLimits
from guardwire_server.core.transitions import State
from tests.core.fakes import ids, opening
from tests.core.simulated_engine import LIMITS, Stream


def opened(*events: ev.Event, limits: SessionLimits = LIMITS) -> Stream:
    stream = Stream(limits)
    stream.send(opening(), *events)
    return stream


def num_verdicts(stream: Stream) -> int:
    return sum(len(update.verdicts) for update in stream.updates if isinstance(update, ev.TokenVerdicts))


def tick(stream: Stream, now_s: float) -> None:
    stream.now_s = now_s
    stream.send(ev.TimePassed())


def assert_timeout(stream: Stream, reason: str) -> None:
    assert isinstance(stream.error, StreamTimeout)
    assert stream.error.reason == reason


def test_finish_waits_for_all_verdicts_and_ends_with_the_summary() -> None:
    stream = opened(ev.TokensPushed(ids(20, 21, 22)), ev.FinishRequested())
    assert (stream.session.state, stream.ends) == (State.CLOSING, [])
    stream.now_s = 2.5
    stream.settle()
    summary = stream.updates[-1]
    assert isinstance(summary, ev.SummaryGiven)
    assert (summary.end_reason, summary.num_tokens) == (ev.EndReason.FINISHED, 3)
    assert (summary.duration_s, summary.time_to_prompt_verdict_s) == (2.5, 2.5)
    assert stream.error is None


def test_finish_ends_at_once_when_all_is_judged() -> None:
    stream = opened()
    stream.settle()
    *_, end = stream.send(ev.FinishRequested())
    assert end == ev.StreamEnded(None)


@pytest.mark.parametrize(
    "bad", [ev.TokensPushed(ids(20), 7), ev.RollbackRequested(9), ev.InputRefused(InvalidField("BAD", "f", "bad"))]
)
def test_an_error_waits_for_the_verdicts_of_what_came_before(bad: ev.Event) -> None:
    stream = opened(ev.TokensPushed(ids(20, 21, 22)), bad)
    assert (stream.session.state, stream.session.wants_input, stream.ends) == (State.CLOSING, False, [])
    stream.settle()
    assert num_verdicts(stream) == 3
    assert stream.error is not None


def test_the_first_error_stands() -> None:
    stream = opened(ev.TokensPushed(ids(20)), ev.RollbackRequested(9), ev.FinishRequested(), ev.InputEnded())
    stream.settle()
    assert isinstance(stream.error, OutOfRange)
    assert not stream.told(ev.SummaryGiven)


def test_nothing_may_follow_finish() -> None:
    stream = opened(ev.TokensPushed(ids(20)), ev.FinishRequested())
    assert stream.session.wants_input
    stream.send(ev.TokensPushed(ids(21)))
    assert not stream.session.wants_input
    stream.settle()
    assert isinstance(stream.error, WrongState)
    assert num_verdicts(stream) == 1


def test_abandonment_waits_for_nothing() -> None:
    stream = opened(ev.TokensPushed(ids(20)), ev.InputEnded())
    assert isinstance(stream.error, Abandoned)


@pytest.mark.parametrize("is_closing", [False, True])
def test_a_lost_sequence_ends_the_stream_at_once(is_closing: bool) -> None:
    error = EngineError("STEP_FAILED", "failed", "id")
    stream = opened(ev.TokensPushed(ids(20)), *((ev.FinishRequested(),) if is_closing else ()))
    stream.send(ev.SequenceFailed(error))
    assert stream.error is error
    stream.settle()
    assert num_verdicts(stream) == 0


def test_results_after_the_end_are_passed_over() -> None:
    stream = opened(ev.TokensPushed(ids(20)), ev.InputEnded())
    stream.settle()
    assert len(stream.ends) == 1
    assert len(stream.updates) == 1


def test_an_unopened_stream_has_the_idle_timeout_too() -> None:
    stream = Stream()
    tick(stream, 9.9)
    assert not stream.ends
    tick(stream, 10.0)
    assert_timeout(stream, "IDLE_TIMEOUT")


@pytest.mark.parametrize(
    "event",
    [
        ev.TokensPushed(ids(20)),
        ev.TokensPushed(ids()),
        ev.RollbackRequested(0),
        ev.UserTurnAdded("b"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_whatever_the_caller_sends_puts_the_idle_timeout_off(event: ev.Event) -> None:
    stream = opened()
    stream.settle()
    stream.now_s = 6.0
    stream.send(event)
    stream.settle()
    tick(stream, 15.9)
    assert not stream.ends
    tick(stream, 16.0)
    assert_timeout(stream, "IDLE_TIMEOUT")


def test_text_that_is_held_back_puts_the_idle_timeout_off() -> None:
    stream = Stream()
    stream.send(replace(opening(), input_kind=ev.InputKind.TEXT))
    stream.settle()
    stream.now_s = 6.0
    stream.send(ev.TextPushed("held"))
    tick(stream, 15.9)
    assert not stream.ends


def test_a_stream_that_waits_for_the_engine_is_not_idle() -> None:
    stream = opened(ev.TokensPushed(ids(20)))
    tick(stream, 50.0)
    assert not stream.ends


def test_a_caller_that_waited_for_a_slow_verdict_gets_its_time_after_it() -> None:
    stream = opened()
    stream.now_s = 50.0
    stream.settle()
    tick(stream, 59.9)
    assert not stream.ends
    stream.send(ev.TokensPushed(ids(20)))
    stream.now_s = 80.0
    stream.settle()
    tick(stream, 89.9)
    assert not stream.ends
    tick(stream, 90.0)
    assert_timeout(stream, "IDLE_TIMEOUT")


def test_nothing_makes_a_stream_live_longer_than_its_limit() -> None:
    stream = opened(ev.TokensPushed(ids(20)))
    stream.settle()
    stream.now_s = 99.0
    stream.send(ev.TokensPushed(ids(20)), ev.FinishRequested())
    tick(stream, 99.9)
    assert not stream.ends
    tick(stream, 100.0)
    assert_timeout(stream, "MAX_LIFETIME")


def test_the_lifetime_begins_with_open() -> None:
    stream = Stream()
    stream.now_s = 9.0
    stream.send(opening(), ev.TokensPushed(ids(20)))
    tick(stream, 108.9)
    assert not stream.ends
    tick(stream, 109.0)
    assert_timeout(stream, "MAX_LIFETIME")


def test_input_is_wanted_until_too_much_is_pending() -> None:
    stream = opened(limits=replace(LIMITS, max_pending_tokens=4))
    assert stream.session.wants_input
    stream.send(ev.TokensPushed(ids(20, 21)))
    assert stream.session.wants_input  # two tokens and the prompt
    stream.send(ev.TokensPushed(ids(22)))
    assert not stream.session.wants_input
    stream.settle()
    assert stream.session.wants_input


def test_a_rollback_lowers_what_is_pending() -> None:
    stream = opened(ev.TokensPushed(ids(20, 21, 22)), limits=replace(LIMITS, max_pending_tokens=4))
    assert not stream.session.wants_input
    stream.send(ev.RollbackRequested(1))
    assert stream.session.wants_input


def test_what_could_not_be_judged_gets_the_policys_action_for_that() -> None:
    stream = opened(ev.TokensPushed(ids(20, 21, 22)))
    stream.send(ev.SequenceFailed(EngineError("STEP_FAILED", "the step failed")))
    (told,) = stream.told(ev.DecisionTaken)
    assert isinstance(told, ev.DecisionTaken)
    decision = told.decision
    assert (decision.action, decision.reason) == (Action.BLOCK, DecisionReason.NOT_JUDGED)
    assert (decision.token_index, decision.cut_index, decision.risk_level) == (0, 0, None)
    assert told.enforced
    assert isinstance(stream.error, EngineError)


def test_a_failure_after_everything_is_judged_decides_nothing() -> None:
    stream = opened(ev.TokensPushed(ids(20)))
    stream.settle()
    before = stream.told(ev.DecisionTaken)
    stream.send(ev.SequenceFailed(EngineError("STEP_FAILED", "the step failed")))
    assert stream.told(ev.DecisionTaken) == before


def test_a_stream_that_opens_while_the_server_drains_is_told_so_after_opened() -> None:
    stream = Stream(LIMITS)
    stream.send(ev.DrainAnnounced(5.0))
    assert stream.updates == []
    stream.send(opening())
    assert isinstance(stream.updates[0], ev.StreamOpened)
    assert stream.updates[1] == ev.DrainingNoted(5.0)
