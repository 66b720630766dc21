"""What a session does with what it is told, case by case; test_session_model.py mixes all of it."""

from array import array
from dataclasses import replace

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import CallerError, InvalidField, OutOfRange, WrongState
from guardwire_server.core.policy import Action, Debounce, Policy, Strictness, TurnRules
from guardwire_server.core.session import Session
from guardwire_server.core.step_plan import Read
from guardwire_server.core.transitions import State
from guardwire_server.core.verdict import Message, RiskLevel, Role
from tests.core.fakes import IM_END, IM_START, NEWLINE, THINK, THINK_END, FakeRenderer, ids, model_verdict, opening
from tests.core.reference import Caller, Truth
from tests.core.simulated_engine import LIMITS, Stream

EAGER = Policy("eager", "", strictness=Strictness.STRICT, debounce=Debounce.NONE, user=TurnRules(Action.ALLOW))
"""Blocks at the first risky token, and never at a prompt."""


def opened(open_event: ev.OpenRequested | None = None) -> Stream:
    stream = Stream()
    stream.send(open_event or opening())
    return stream


def risky_token(stream_prompt: "list[int]", level: RiskLevel = RiskLevel.UNSAFE) -> int:
    """A token that is judged so right after these."""
    return next(token for token in range(20, 400) if model_verdict([*stream_prompt, token]).risk_level is level)


def prompt_ids(open_event: ev.OpenRequested) -> list[int]:
    assert isinstance(open_event.prompt, tuple)
    return FakeRenderer().prompt(open_event.prompt, open_event.thinking).token_ids.tolist()


def assert_ends_with(stream: Stream, kind: type[CallerError], reason: str, field: str) -> None:
    stream.settle()
    error = stream.error
    assert type(error) is kind
    assert (error.reason, error.field) == (reason, field)


def test_opening_reads_the_prompt_at_its_end() -> None:
    event = opening("hi")
    stream = Stream()
    first, extension = stream.send(event)
    assert first == ev.StreamOpened("test", 8, LIMITS.max_context_tokens - 8)
    assert extension == ev.ExtendSequence(ids(*prompt_ids(event)), bytes((0, 0, 0, Read.QUERY, 0, 0, 0, 0)))
    stream.settle()
    expected = model_verdict(prompt_ids(event)[:4], is_query=True)
    assert stream.told(ev.PromptVerdict) == [ev.PromptVerdict(0, expected)]


def test_a_prompt_is_judged_once_and_only_where_one_closes() -> None:
    stream = opened()
    stream.settle()
    verdict = model_verdict([1], is_query=True)
    assert stream.send(ev.PromptJudged(0, 3, verdict), ev.PromptJudged(0, 4, verdict)) == []


def test_a_templated_prompt_is_taken_as_it_is() -> None:
    prompt = ids(IM_START, 30, IM_END, NEWLINE, IM_START, THINK, THINK_END)
    stream = opened(replace(opening(), prompt=prompt))
    assert stream.engine.inbox[0] == ev.ExtendSequence(prompt, bytes((0, 0, Read.QUERY, 0, 0, 0, 0)))


def test_a_templated_prompt_without_user_turn_is_refused() -> None:
    stream = opened(replace(opening(), prompt=ids(30, 31)))
    assert_ends_with(stream, InvalidField, "NO_USER_TURN", "open.templated.token_ids")


@pytest.mark.parametrize(
    ("prompt", "field"),
    [(opening("x" * 300).prompt, "open.conversation"), (ids(*(IM_END,) * 201), "open.templated.token_ids")],
)
def test_a_prompt_beyond_the_context(prompt: "tuple[Message, ...] | array[int]", field: str) -> None:
    assert_ends_with(opened(replace(opening(), prompt=prompt)), OutOfRange, "CONTEXT_OVERFLOW", field)


def test_the_context_can_be_filled_to_the_last_token() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*(20,) * 192)))
    assert stream.session.state is State.STREAMING
    stream.send(ev.TokensPushed(ids(20)))
    assert_ends_with(stream, OutOfRange, "CONTEXT_OVERFLOW", "tokens.token_ids")
    assert sum(len(one.verdicts) for one in stream.told(ev.TokenVerdicts) if isinstance(one, ev.TokenVerdicts)) == 192


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        (ev.UserTurnAdded("x" * 200), "user_turn.content"),
        (ev.UserTurnAdded(ids(*(20,) * 200)), "user_turn.tokens.token_ids"),
    ],
)
def test_a_user_turn_beyond_the_context(turn: ev.UserTurnAdded, field: str) -> None:
    stream = opened()
    stream.send(turn)
    assert_ends_with(stream, OutOfRange, "CONTEXT_OVERFLOW", field)


def test_a_rollback_makes_room_again() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*(20,) * 192)), ev.RollbackRequested(0), ev.TokensPushed(ids(*(20,) * 192)))
    stream.send(ev.FinishRequested())
    stream.settle()
    assert stream.error is None


@pytest.mark.parametrize(("start_index", "kind"), [(1, "a gap"), (0, None), (2**63, "a gap")])
def test_a_stated_index_is_checked(start_index: int, kind: str | None) -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(20), start_index))
    if kind is None:
        assert stream.session.state is State.STREAMING
    else:
        assert_ends_with(stream, OutOfRange, "START_INDEX_MISMATCH", "tokens.start_index")
        assert str(stream.error) == f"tokens.start_index: {start_index} is {kind}: 0 was expected"


def test_an_overlap_is_refused_also_if_it_is_a_repeat() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(20, 21)), ev.TokensPushed(ids(21), 1))
    assert_ends_with(stream, OutOfRange, "START_INDEX_MISMATCH", "tokens.start_index")


@pytest.mark.parametrize(("kept", "where"), [(0, "into the prompt"), (1, "into the prompt"), (5, "beyond the end")])
def test_a_rollback_stays_in_the_present_answer(kept: int, where: str) -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(20, 21)), ev.UserTurnAdded("b"), ev.TokensPushed(ids(22, 23)))
    stream.send(ev.RollbackRequested(kept))
    assert_ends_with(stream, OutOfRange, "ROLLBACK_OUT_OF_RANGE", "rollback.num_tokens_kept")
    assert f"{kept} is {where}: the present answer allows 2 to 4" in str(stream.error)


def test_a_rollback_reaches_the_engine_before_what_is_pushed_after_it() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(20, 21, 22)))
    assert stream.send(ev.RollbackRequested(1), ev.TokensPushed(ids(30))) == [
        ev.TruncateSequence(9, 1),
        ev.RolledBack(1, Action.ALLOW),
        ev.ExtendSequence(ids(30), bytes((Read.RESPONSE,))),
    ]


def test_results_in_flight_count_for_the_tokens_that_stay() -> None:
    truth = Truth(opening())
    caller = Caller(truth.opening.policy)
    stream = opened(truth.opening)
    stream.send(ev.TokensPushed(ids(20, 21, 22)))
    while stream.engine.inbox:
        stream.engine.apply()
    stream.engine.judge(100)
    stream.send(ev.RollbackRequested(2), ev.TokensPushed(ids(30, 31)), ev.RollbackRequested(3), ev.FinishRequested())
    stream.settle()
    for update in stream.updates:
        caller.take(update)
    truth.push([20, 21, 30])
    caller.check(truth)


def test_a_rollback_takes_a_decision_back_and_says_so() -> None:
    event = opening(policy=EAGER)
    stream = opened(event)
    risky = risky_token(prompt_ids(event))
    stream.send(ev.TokensPushed(ids(risky)))
    stream.settle()
    assert [one.decision.action for one in stream.updates if isinstance(one, ev.DecisionTaken)] == [Action.BLOCK]
    stream.send(ev.RollbackRequested(0))
    assert stream.updates[-1] == ev.RolledBack(0, Action.ALLOW)
    stream.send(ev.FinishRequested())
    summary = stream.updates[-1]
    assert isinstance(summary, ev.SummaryGiven)
    assert (summary.action, summary.num_tokens, summary.risk_level) == (Action.ALLOW, 0, None)


def test_blocking_ends_the_stream_if_it_was_asked_to() -> None:
    event = replace(opening(policy=EAGER), end_on_block=True)
    stream = opened(event)
    stream.send(ev.TokensPushed(ids(risky_token(prompt_ids(event)), 20, 21)))
    stream.settle()
    *_, verdicts, decision, summary = stream.updates
    assert isinstance(verdicts, ev.TokenVerdicts)
    assert isinstance(decision, ev.DecisionTaken)
    assert isinstance(summary, ev.SummaryGiven)
    assert (decision.decision.action, decision.enforced) == (Action.BLOCK, True)
    assert (summary.end_reason, summary.action) == (ev.EndReason.BLOCKED, Action.BLOCK)
    assert (stream.error, stream.session.state) == (None, State.ENDED)


@pytest.mark.parametrize(
    "event",
    [
        replace(opening(policy=EAGER), end_on_block=True, observe_only=True),
        replace(opening(policy=replace(EAGER, observe_only=True)), end_on_block=True),
    ],
)
def test_observing_enforces_nothing(event: ev.OpenRequested) -> None:
    stream = opened(event)
    stream.send(ev.TokensPushed(ids(risky_token(prompt_ids(event)))))
    stream.settle()
    (told,) = stream.told(ev.DecisionTaken)
    assert isinstance(told, ev.DecisionTaken)
    assert (told.decision.action, told.enforced, stream.session.state) == (Action.BLOCK, False, State.STREAMING)


def test_a_blocked_prompt_ends_the_stream_too() -> None:
    content = next(
        text
        for text in map(str, range(100))
        if Truth(opening(text)).prompt_verdicts()[0].risk_level is RiskLevel.UNSAFE
    )
    event = replace(opening(content, replace(EAGER, user=TurnRules(Action.BLOCK))), end_on_block=True)
    stream = opened(event)
    stream.settle()
    _, verdict, decision, summary = stream.updates
    assert isinstance(verdict, ev.PromptVerdict)
    assert isinstance(decision, ev.DecisionTaken)
    assert (decision.decision.role, decision.cut_text_offset) == (Role.USER, None)
    assert isinstance(summary, ev.SummaryGiven)
    assert summary.end_reason is ev.EndReason.BLOCKED


def test_input_of_the_other_kind_is_refused() -> None:
    stream = opened()
    stream.send(ev.TextPushed("a "))
    assert_ends_with(stream, WrongState, "WRONG_INPUT_KIND", "text")
    stream = opened(replace(opening(), input_kind=ev.InputKind.TEXT))
    stream.send(ev.TokensPushed(ids(20)))
    assert_ends_with(stream, WrongState, "WRONG_INPUT_KIND", "tokens")


def test_no_tokens_are_no_error() -> None:
    stream = opened()
    assert stream.send(ev.TokensPushed(ids()), ev.TokensPushed(ids(), 0)) == []


def test_a_new_session_awaits_open_and_wants_it() -> None:
    session = Session(LIMITS, FakeRenderer(), 0.0)
    assert (session.state, session.wants_input) == (State.AWAITING_OPEN, True)
