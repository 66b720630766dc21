"""In which state of a stream which event is allowed, and what handles it: the one place that says so."""

from enum import Enum

from guardwire_server.core import events as ev
from guardwire_server.core.errors import RequestError, WrongState


class State(Enum):
    """Where a stream stands."""

    AWAITING_OPEN = "awaiting open"
    STREAMING = "streaming"
    CLOSING = "closing"
    ENDED = "ended"


TRANSITIONS: dict[tuple[State, type[ev.Event]], str] = {
    (State.AWAITING_OPEN, ev.OpenRequested): "_open",
    (State.AWAITING_OPEN, ev.InputRefused): "_refuse",
    (State.AWAITING_OPEN, ev.InputEnded): "_end_unopened",
    (State.AWAITING_OPEN, ev.SequenceFailed): "_fail",
    (State.AWAITING_OPEN, ev.TimePassed): "_check_deadlines",
    (State.AWAITING_OPEN, ev.DrainAnnounced): "_note_drain",
    (State.STREAMING, ev.TokensPushed): "_push_tokens",
    (State.STREAMING, ev.TextPushed): "_push_text",
    (State.STREAMING, ev.RollbackRequested): "_roll_back",
    (State.STREAMING, ev.UserTurnAdded): "_add_user_turn",
    (State.STREAMING, ev.FinishRequested): "_finish",
    (State.STREAMING, ev.InputRefused): "_refuse",
    (State.STREAMING, ev.InputEnded): "_abandon",
    (State.STREAMING, ev.TokensJudged): "_take_verdicts",
    (State.STREAMING, ev.PromptJudged): "_take_prompt_verdict",
    (State.STREAMING, ev.SequenceFailed): "_fail",
    (State.STREAMING, ev.TimePassed): "_check_deadlines",
    (State.STREAMING, ev.DrainAnnounced): "_announce_drain",
    (State.CLOSING, ev.InputRefused): "_refuse",
    (State.CLOSING, ev.InputEnded): "_pass_over",
    (State.CLOSING, ev.TokensJudged): "_take_verdicts",
    (State.CLOSING, ev.PromptJudged): "_take_prompt_verdict",
    (State.CLOSING, ev.SequenceFailed): "_fail",
    (State.CLOSING, ev.TimePassed): "_check_deadlines",
    (State.CLOSING, ev.DrainAnnounced): "_announce_drain",
}
"""What handles an event in a state. In ENDED everything is passed over: results and messages that were on their way."""

HANDLERS: dict[str, dict[type[ev.Event], str]] = {
    state.value: {event: handler for (of, event), handler in TRANSITIONS.items() if of is state} for state in State
}
"""The same by the state's value, which unlike the state itself is found in a dictionary without running Python code."""


_FIELDS: dict[type[ev.Event], str] = {
    ev.OpenRequested: "open",
    ev.TokensPushed: "tokens",
    ev.TextPushed: "text",
    ev.RollbackRequested: "rollback",
    ev.UserTurnAdded: "user_turn",
    ev.FinishRequested: "finish",
}


def wrong_state(state: State, event: ev.Event) -> RequestError:
    """The error for an event that `TRANSITIONS` does not list."""
    field = _FIELDS.get(type(event), "")
    if state is State.AWAITING_OPEN:
        return WrongState("OPEN_REQUIRED", field, "the first message must be `open`")
    if state is State.STREAMING:
        return WrongState("ALREADY_OPEN", field, "the stream is open already")
    return WrongState("FINISHED", field, "nothing may follow `finish`")


def transition_table() -> str:
    """`TRANSITIONS` as a Markdown table: events down, states across; the documentation holds it."""
    states = [state for state in State if state is not State.ENDED]
    events = list(dict.fromkeys(event for _, event in TRANSITIONS))
    lines = [f"| event | {' | '.join(state.value for state in states)} |", "|---" * (len(states) + 1) + "|"]
    for event in events:
        handlers = [TRANSITIONS.get((state, event), "").strip("_").replace("_", " ") for state in states]
        lines.append(f"| {event.__name__} | {' | '.join(handlers)} |")
    return "\n".join(lines)
