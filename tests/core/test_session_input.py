"""Text streams, resumed streams, and streams that are told changes only."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core import events as ev
from guardwire_server.core.errors import OutOfRange
from guardwire_server.core.policy import Action, Debounce, Policy, TurnRules
from guardwire_server.core.verdict import Verdict
from tests.core.fakes import FIRST_CHARACTER, ids, opening, packed
from tests.core.reference import Truth
from tests.core.simulated_engine import Stream
from tests.core.strategies import BOUNDED

EAGER = Policy("eager", "", debounce=Debounce.NONE, user=TurnRules(Action.ALLOW))


def opened(**options: object) -> Stream:
    stream = Stream()
    stream.send(replace(opening(policy=EAGER), **options))  # type: ignore[arg-type]
    return stream


def texts_of(stream: Stream) -> list[tuple[int, list[int]]]:
    """(start index, text offsets) of every report."""
    return [
        (update.start_index, update.text_end_offsets.tolist())
        for update in stream.updates
        if isinstance(update, ev.TokenVerdicts)
    ]


def verdicts_told(stream: Stream) -> dict[int, Verdict]:
    """By index, the newest."""
    return {
        update.start_index + offset: update.verdicts[offset]
        for update in stream.updates
        if isinstance(update, ev.TokenVerdicts)
        for offset in range(len(update.verdicts))
    }


def truth_of(*answers: str | list[int]) -> list[Verdict]:
    """The verdicts on these answers, each to a user message `b` but the first."""
    truth = Truth(opening(policy=EAGER))
    for number, answer in enumerate(answers):
        if number:
            truth.add_user_turn("b")
        truth.push([FIRST_CHARACTER + ord(one) if isinstance(one, str) else one for one in answer])
    return [verdict for turn in truth.turns for verdict in truth.answer_verdicts(turn)]


def text_stream(*events: ev.Event) -> Stream:
    stream = opened(input_kind=ev.InputKind.TEXT)
    for event in events:
        stream.send(event)
        stream.settle()
    return stream


def test_a_word_is_held_back_until_it_is_settled() -> None:
    stream = text_stream(ev.TextPushed("é b"))
    assert texts_of(stream) == [(0, [2, 3])]
    stream.send(ev.TextPushed("c"))
    stream.settle()
    assert texts_of(stream) == [(0, [2, 3])]
    stream.send(ev.TextPushed(" "))
    stream.settle()
    assert texts_of(stream) == [(0, [2, 3]), (2, [4, 5, 6])]


@pytest.mark.parametrize("settling", [ev.TextPushed("", flush=True), ev.UserTurnAdded("b"), ev.FinishRequested()])
def test_what_settles_the_held_back_word(settling: ev.Event) -> None:
    stream = text_stream(ev.TextPushed("ab"), settling)
    assert texts_of(stream) == [(0, [1, 2])]
    assert list(verdicts_told(stream).values()) == truth_of("ab")


def test_offsets_go_on_over_turns() -> None:
    stream = text_stream(ev.TextPushed("a b"), ev.UserTurnAdded("b"), ev.TextPushed("c "), ev.FinishRequested())
    assert texts_of(stream) == [(0, [1, 2]), (2, [3]), (3, [4, 5])]
    assert list(verdicts_told(stream).values()) == truth_of("a b", "c ")


def test_a_rollback_goes_back_in_the_text_and_drops_what_was_held() -> None:
    stream = text_stream(ev.TextPushed("aé bc"), ev.RollbackRequested(2), ev.TextPushed("x "))
    assert texts_of(stream) == [(0, [1, 3, 4]), (2, [4, 5])]
    assert list(verdicts_told(stream).values()) == truth_of("aéx ")


def test_a_rollback_to_the_beginning() -> None:
    stream = text_stream(ev.TextPushed("ab "), ev.RollbackRequested(0), ev.TextPushed("c "))
    assert texts_of(stream)[-1] == (0, [1, 2])


def test_a_decision_tells_where_to_cut_the_text() -> None:
    stream = text_stream(ev.TextPushed("é b c d e f g h "))
    (first, *_) = [update for update in stream.updates if isinstance(update, ev.DecisionTaken)]
    cut = first.decision.cut_index
    assert first.cut_text_offset == (texts_of(stream)[0][1][cut - 1] if cut else 0)


def test_a_text_that_outgrows_the_context_ends_the_stream() -> None:
    stream = text_stream(ev.TextPushed("x" * 300), ev.FinishRequested())
    assert isinstance(stream.error, OutOfRange)
    assert stream.error.field == "text.text"


def test_a_resumed_stream_tells_the_decision_and_only_the_missing_verdicts() -> None:
    answer = list(range(20, 40))
    whole, resumed = opened(), opened(resume_from=12)
    for stream in (whole, resumed):
        stream.send(ev.TokensPushed(ids(*answer)), ev.FinishRequested())
        stream.settle()
    assert list(verdicts_told(resumed).items()) == list(verdicts_told(whole).items())[12:]
    assert resumed.told(ev.DecisionTaken) == whole.told(ev.DecisionTaken)
    assert resumed.updates[-1] == whole.updates[-1]


def test_an_exact_repeat_is_skipped_on_a_resumed_stream() -> None:
    stream = opened(resume_from=2)
    stream.send(ev.TokensPushed(ids(20, 21, 22, 23), 0))
    assert stream.send(ev.TokensPushed(ids(21, 22), 1), ev.TokensPushed(ids(20, 21, 22, 23), 0)) == []
    stream.send(ev.TokensPushed(ids(24), 4))
    stream.settle()
    assert list(verdicts_told(stream).values()) == truth_of([20, 21, 22, 23, 24])[2:]


@pytest.mark.parametrize(
    "push",
    [ev.TokensPushed(ids(21, 29), 1), ev.TokensPushed(ids(23, 24), 3), ev.TokensPushed(ids(25), 5)],
    ids=["another token", "beyond the end", "a gap"],
)
def test_what_is_no_exact_repeat_is_refused(push: ev.TokensPushed) -> None:
    stream = opened(resume_from=2)
    stream.send(ev.TokensPushed(ids(20, 21, 22, 23)), push)
    stream.settle()
    assert isinstance(stream.error, OutOfRange)


def test_tokens_after_a_rollback_below_the_place_of_resumption_are_told() -> None:
    stream = opened(resume_from=4)
    stream.send(ev.TokensPushed(ids(20, 21, 22, 23)), ev.RollbackRequested(1), ev.TokensPushed(ids(30, 31)))
    stream.send(ev.FinishRequested())
    stream.settle()
    told = verdicts_told(stream)
    assert list(told) == [1, 2]
    assert list(told.values()) == truth_of([20, 30, 31])[1:]


@BOUNDED
@given(st.lists(st.lists(st.integers(20, 60), max_size=6), max_size=5))
def test_the_changes_are_all_that_is_needed(chunks: list[list[int]]) -> None:
    stream = opened(update_mode=ev.UpdateMode.ON_CHANGE)
    for chunk in chunks:
        stream.send(ev.TokensPushed(ids(*chunk)))
        stream.settle()
    told, previous = verdicts_told(stream), None
    for index, verdict in enumerate(truth_of([token for chunk in chunks for token in chunk])):
        present = (verdict.risk_level, verdict.category)
        assert (index in told) == (present != previous)
        assert index not in told or told[index] == verdict
        previous = present


def test_a_decision_does_not_depend_on_what_is_told() -> None:
    answer = ids(*range(20, 50))
    streams = [opened(update_mode=mode) for mode in ev.UpdateMode]
    for stream in streams:
        stream.send(ev.TokensPushed(answer), ev.FinishRequested())
        stream.settle()
    first, second = streams
    assert first.told(ev.DecisionTaken) == second.told(ev.DecisionTaken) != []
    assert first.updates[-1] == second.updates[-1]


def test_a_result_out_of_order_is_a_fault_of_the_server() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(20, 21)))
    with pytest.raises(AssertionError, match="verdicts from 1 on, but 0 tokens are judged"):
        stream.send(ev.TokensJudged(0, 9, packed(truth_of([20]))))
