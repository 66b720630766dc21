"""Every state with every event."""

from dataclasses import replace
from typing import get_args

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import Abandoned, CallerError, EngineUnavailable, InvalidField, WrongState
from guardwire_server.core.session import Session
from guardwire_server.core.transitions import TRANSITIONS, State
from tests.core.fakes import ids, model_verdict, opening, packed
from tests.core.simulated_engine import Stream

EVENTS: dict[type[ev.Event], ev.Event] = {
    type(event): event
    for event in (
        opening(),
        ev.TokensPushed(ids(20)),
        ev.TextPushed("a "),
        ev.RollbackRequested(0),
        ev.UserTurnAdded("more"),
        ev.FinishRequested(),
        ev.InputRefused(InvalidField("BAD", "field", "is bad")),
        ev.InputEnded(),
        ev.TokensJudged(0, 8, packed([model_verdict([1])])),
        ev.PromptJudged(0, 3, model_verdict([1], is_query=True)),
        ev.SequenceFailed(EngineUnavailable("LOST", "lost")),
        ev.TimePassed(),
        ev.DrainAnnounced(5.0),
    )
}
FIELDS = {
    ev.OpenRequested: "open",
    ev.TokensPushed: "tokens",
    ev.TextPushed: "text",
    ev.RollbackRequested: "rollback",
    ev.UserTurnAdded: "user_turn",
    ev.FinishRequested: "finish",
}
REASONS = {State.AWAITING_OPEN: "OPEN_REQUIRED", State.STREAMING: "ALREADY_OPEN", State.CLOSING: "FINISHED"}
PAIRS = [(state, kind) for state in State if state is not State.ENDED for kind in EVENTS]
ILLEGAL = [pair for pair in PAIRS if pair not in TRANSITIONS]


def stream_in(state: State, kind: type[ev.Event] = ev.TokensPushed) -> Stream:
    """A stream in that state, with one token still to be judged; one for text if the event to come is text."""
    stream = Stream()
    if state is not State.AWAITING_OPEN:
        is_text = kind is ev.TextPushed
        input_kind = ev.InputKind.TEXT if is_text else ev.InputKind.TOKENS
        stream.send(replace(opening(), input_kind=input_kind), EVENTS[ev.TextPushed if is_text else ev.TokensPushed])
    if state is State.CLOSING:
        stream.send(ev.FinishRequested())
    if state is State.ENDED:
        stream.send(EVENTS[ev.SequenceFailed])
    assert stream.session.state is state
    return stream


def name(value: object) -> str:
    return value.name if isinstance(value, State) else getattr(value, "__name__", "")


def test_every_event_is_tried() -> None:
    assert set(EVENTS) == set(get_args(ev.Event))


def test_every_handler_exists_and_every_illegal_pair_is_meant() -> None:
    assert all(callable(getattr(Session, handler)) for handler in TRANSITIONS.values())
    caller_events = set(FIELDS)
    assert set(ILLEGAL) == {
        *((State.AWAITING_OPEN, kind) for kind in caller_events - {ev.OpenRequested}),
        *((State.AWAITING_OPEN, kind) for kind in (ev.TokensJudged, ev.PromptJudged)),
        (State.STREAMING, ev.OpenRequested),
        *((State.CLOSING, kind) for kind in caller_events),
    }


@pytest.mark.parametrize(("state", "kind"), ILLEGAL, ids=name)
def test_an_illegal_event_is_the_callers_error(state: State, kind: type[ev.Event]) -> None:
    stream = stream_in(state, kind)
    stream.send(EVENTS[kind])
    stream.settle()
    error = stream.error
    assert isinstance(error, WrongState)
    assert (error.reason, error.field) == (REASONS[state], FIELDS.get(kind, ""))


@pytest.mark.parametrize(("state", "kind"), [pair for pair in PAIRS if pair in TRANSITIONS], ids=name)
def test_a_legal_event_is_no_wrong_state(state: State, kind: type[ev.Event]) -> None:
    stream = stream_in(state, kind)
    stream.send(EVENTS[kind])
    if kind is not ev.TokensJudged:  # its token would be judged twice
        stream.settle()
    is_missing_open = (state, kind) == (State.AWAITING_OPEN, ev.InputEnded)
    errors = [end.error for end in stream.ends]
    assert any(isinstance(error, WrongState) for error in errors) == is_missing_open


@pytest.mark.parametrize("kind", EVENTS, ids=name)
def test_nothing_follows_the_end(kind: type[ev.Event]) -> None:
    assert stream_in(State.ENDED).send(EVENTS[kind]) == []


@pytest.mark.parametrize("state", [State.AWAITING_OPEN, State.STREAMING, State.CLOSING], ids=name)
def test_a_lost_engine_is_never_the_callers_fault(state: State) -> None:
    stream = stream_in(state)
    event = EVENTS[ev.SequenceFailed]
    assert isinstance(event, ev.SequenceFailed)
    *_, end = stream.send(event)
    assert end == ev.StreamEnded(event.error)


@pytest.mark.parametrize("state", [State.AWAITING_OPEN, State.STREAMING, State.CLOSING], ids=name)
def test_a_refused_message_ends_the_stream_with_its_error(state: State) -> None:
    stream = stream_in(state)
    stream.send(EVENTS[ev.InputRefused])
    stream.settle()
    assert isinstance(stream.error, CallerError)
    assert stream.error.reason == "BAD"


def test_the_end_of_input() -> None:
    unopened, streaming, closing = (stream_in(state) for state in (State.AWAITING_OPEN, State.STREAMING, State.CLOSING))
    for stream in (unopened, streaming, closing):
        stream.send(ev.InputEnded())
    assert isinstance(unopened.error, WrongState)
    assert isinstance(streaming.error, Abandoned)
    closing.settle()
    assert closing.error is None


def test_draining_is_told_only_to_open_streams() -> None:
    drain = EVENTS[ev.DrainAnnounced]
    assert stream_in(State.AWAITING_OPEN).send(drain) == []
    assert stream_in(State.STREAMING).send(drain) == stream_in(State.CLOSING).send(drain) == [ev.DrainingNoted(5.0)]
