"""Answers longer than the context: the older half leaves it, indices go on, and how tokens came does not matter."""

from array import array
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core import events as ev
from guardwire_server.core.errors import OutOfRange
from guardwire_server.core.policy import Action, Policy, TurnRules
from guardwire_server.core.verdict import Verdict
from tests.core.fakes import FakeRenderer, ids, model_verdict, opening
from tests.core.simulated_engine import LIMITS, Stream
from tests.core.strategies import BOUNDED

EAGER = Policy("eager", "", user=TurnRules(Action.ALLOW))
MAX_TOKENS = 40
"""Of the context; the prompt takes 8 of them."""


def opened(content: str = "hi", *, short_ways: bool = False) -> Stream:
    stream = Stream(replace(LIMITS, max_context_tokens=MAX_TOKENS), short_ways=short_ways)
    stream.send(replace(opening(content, policy=EAGER), context_overflow=ev.ContextOverflow.SLIDE))
    stream.settle()
    return stream


def expected(answer: list[int], content: str = "hi") -> list[Verdict]:
    """Each token judged behind the prompt and what the window holds: written out, one token after another."""
    prompt_event = opening(content).prompt
    assert isinstance(prompt_event, tuple)
    prompt = FakeRenderer().prompt(prompt_event, ev.Thinking.OFF).token_ids
    window: list[int] = []
    verdicts: list[Verdict] = []
    for token_id in answer:
        if len(prompt) + len(window) == MAX_TOKENS:
            del window[: len(window) // 2]
        window.append(token_id)
        verdicts.append(model_verdict(prompt + array("i", window)))
    return verdicts


def told(stream: Stream) -> list[Verdict]:
    """Every verdict, by rising index; each must come exactly once."""
    verdicts: list[Verdict] = []
    for update in stream.told(ev.TokenVerdicts):
        assert isinstance(update, ev.TokenVerdicts)
        assert update.start_index == len(verdicts)
        verdicts += [update.verdicts[offset] for offset in range(len(update.verdicts))]
    return verdicts


@BOUNDED
@given(data=st.data(), num_tokens=st.integers(0, 120))
def test_verdicts_depend_on_the_tokens_alone(data: st.DataObject, num_tokens: int) -> None:
    """Random pieces, steps of random sizes between them, results late or early."""
    answer = [20 + index % 50 for index in range(num_tokens)]
    stream, start = opened(short_ways=data.draw(st.booleans())), 0
    while start < num_tokens:
        stop = start + data.draw(st.integers(1, 40) | st.just(1))
        stream.send(ev.TokensPushed(ids(*answer[start:stop]), start if data.draw(st.booleans()) else None))
        start = stop
        for _ in range(data.draw(st.integers(0, 4))):
            while stream.engine.inbox:
                stream.engine.apply()
            stream.engine.judge(data.draw(st.integers(1, 12)))
            if data.draw(st.booleans()) and stream.engine.outbox:
                stream.deliver()
        while stream.engine.outbox:
            stream.deliver()
    stream.send(ev.FinishRequested())
    while not stream.ends:
        stream.settle()
    assert told(stream) == expected(answer)
    (summary,) = stream.told(ev.SummaryGiven)
    assert isinstance(summary, ev.SummaryGiven)
    assert summary.num_tokens == num_tokens
    assert stream.error is None


def test_the_caller_waits_while_the_context_slides() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*range(20, 80))))
    assert not stream.session.wants_input
    for _ in range(20):
        stream.settle()
    assert stream.session.wants_input
    assert told(stream) == expected(list(range(20, 80)))


def test_what_comes_meanwhile_keeps_its_order() -> None:
    stream = opened()
    answer = list(range(20, 60))
    stream.send(ev.TokensPushed(ids(*answer[:30])), ev.TokensPushed(ids(*answer[30:]), start_index=30))
    stream.send(ev.RollbackRequested(35), ev.TokensPushed(ids(7)), ev.FinishRequested(), ev.InputEnded())
    while not stream.ends:
        stream.settle()
    assert stream.error is None
    assert stream.told(ev.RolledBack)
    (summary,) = stream.told(ev.SummaryGiven)
    assert isinstance(summary, ev.SummaryGiven)
    assert summary.num_tokens == 36


def test_no_way_back_to_what_has_left_the_context() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*range(20, 60))))
    for _ in range(3):
        stream.settle()
    stream.send(ev.RollbackRequested(16))
    assert not stream.ends, "16 is the oldest token that is left"
    stream.send(ev.RollbackRequested(15))
    stream.settle()
    assert isinstance(stream.error, OutOfRange)
    assert (
        stream.error.message == "rollback.num_tokens_kept: 15 is out of the context: the present answer allows 16 to 16"
    )


def test_a_next_turn_follows_what_is_left() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*range(20, 54))))
    for _ in range(3):
        stream.settle()
    stream.send(ev.UserTurnAdded("b"), ev.TokensPushed(ids(50, 51)), ev.FinishRequested())
    while not stream.ends:
        stream.settle()
    assert stream.error is None
    assert len(told(stream)) == 36


def test_a_user_message_that_does_not_fit_ends_the_stream() -> None:
    stream = opened()
    stream.send(ev.TokensPushed(ids(*range(20, 36))))
    stream.settle()
    stream.send(ev.UserTurnAdded("much too long for what is left"))
    stream.settle()
    assert isinstance(stream.error, OutOfRange)
    assert stream.error.reason == "CONTEXT_OVERFLOW"


@pytest.mark.parametrize(("num_left", "slides"), [(2, True), (1, False), (0, False)])
def test_a_prompt_that_leaves_no_room_to_slide_in(num_left: int, slides: bool) -> None:
    content = "x" * (MAX_TOKENS - 6 - num_left)
    stream = opened(content)
    stream.send(ev.TokensPushed(ids(*range(20, 30))))
    for _ in range(20):
        stream.settle()
    if slides:
        assert told(stream) == expected(list(range(20, 30)), content)
    else:
        assert isinstance(stream.error, OutOfRange)
        assert stream.error.reason == "CONTEXT_OVERFLOW"


def test_an_end_while_the_context_waits_to_slide() -> None:
    """The engine is lost: nothing waits any more, and what was not judged is not called safe."""
    stream = opened()
    stream.send(ev.TokensPushed(ids(*range(20, 80))), ev.FinishRequested())
    stream.send(ev.SequenceFailed(OutOfRange("R", "f", "lost")))
    assert isinstance(stream.error, OutOfRange)
    assert [update.decision.action for update in stream.updates if isinstance(update, ev.DecisionTaken)] == [
        Action.BLOCK
    ]


def test_held_back_text_that_makes_the_context_slide_comes_before_the_next_turn() -> None:
    stream = Stream(replace(LIMITS, max_context_tokens=MAX_TOKENS))
    begin = replace(opening(policy=EAGER), context_overflow=ev.ContextOverflow.SLIDE, input_kind=ev.InputKind.TEXT)
    stream.send(begin, ev.TextPushed("x" * 34), ev.UserTurnAdded("b"), ev.FinishRequested())
    while not stream.ends:
        stream.settle()
    assert stream.error is None
    assert len(told(stream)) == 34
    assert len(stream.told(ev.PromptVerdict)) == 2
