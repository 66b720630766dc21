"""Sequences of messages over whole calls: mostly what a good caller could send, with anything at all mixed in.

A sequence is made message by message beside its `Contract`, which knows what would be right next: so most sequences get
to the end of the protocol, and those that go wrong do so anywhere in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import strategies as st

from guardwire.v1 import moderation_pb2 as pb
from tests.fuzz.choices import Choices
from tests.fuzz.contract import Contract
from tests.fuzz.likely import STREAM_IDS, answer, likely, near_index
from tests.fuzz.messages import MessageMaker
from tests.fuzz.served import Served
from tests.rpc.messages import finish
from tests.rpc.stream_call import WAIT_S

MAX_MESSAGES = 12
"""In one stream: all of the protocol's turns fit."""

NUM_LATE_MESSAGES = 2
"""Sent behind the one that ends the stream."""

NUM_BYTES = 256
"""What the choices of one sequence take, mostly; in one that takes more the rest is as simple as can be."""

TIMEOUTS_S = (0.03, 0.01, 0.003, 0.001)
"""Deadlines that pass in every state: long after the call could have ended, while it is read, and before it arrives."""


class Ending(Enum):
    """What the caller does when it has sent all."""

    FINISH = "finish"
    HALF_CLOSE = "half-close"
    CANCEL = "cancel"
    DEADLINE = "deadline"


@dataclass(frozen=True)
class Sequence:
    """What a caller sends, and how it ends. Before a cancel it waits for so many answers to other questions."""

    requests: tuple[Any, ...]
    ending: Ending
    num_waits: int = 0
    timeout_s: float | None = None

    def __repr__(self) -> str:
        """One message a line, in protobuf's text format."""
        manner = {Ending.CANCEL: f" after {self.num_waits} waits", Ending.DEADLINE: f" in {self.timeout_s} s"}
        lines = [text_format.MessageToString(request, as_one_line=True) or "{}" for request in self.requests]
        return "\n  ".join(("", *lines, f"then {self.ending.value}{manner.get(self.ending, '')}"))

    def _repr_pretty_(self, printer: Any, _: bool) -> None:  # noqa: ANN401 of hypothesis
        """The same for hypothesis, which otherwise prints fields."""
        printer.text(repr(self))

    @classmethod
    def ended(cls, choices: Choices, requests: list[Any], ending: Ending) -> Self:
        """With what else belongs to the ending."""
        num_waits = choices.below(3) if ending is Ending.CANCEL else 0
        timeout_s = choices.pick(TIMEOUTS_S) if ending is Ending.DEADLINE else None
        return cls(tuple(requests), ending, num_waits, timeout_s)


@dataclass(frozen=True)
class Request:
    """What a caller asks in one message, and how long it waits for the answer."""

    message: Message
    timeout_s: float

    @property
    def is_hasty(self) -> bool:
        """Whether the answer may come too late."""
        return self.timeout_s in TIMEOUTS_S


class SequenceMaker:
    """Makes calls to one server. Stateless."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.messages = MessageMaker(likely(served), served.limits.max_message_bytes)

    def stream(self, choices: Choices) -> Sequence:
        """A call of ModerateStream."""
        ending = choices.pick(tuple(Ending))
        requests = self._conversation(choices)
        if ending is Ending.FINISH:
            requests.append(finish())
        return Sequence.ended(choices, requests, ending)

    def many_streams(self, choices: Choices) -> Sequence:
        """A call of ModerateStreams: a few streams whose messages are mixed, some of them packed."""
        ending = choices.pick(tuple(Ending))
        stream_ids = STREAM_IDS[: 1 + choices.below(len(STREAM_IDS))]
        queues = {stream_id: self._conversation(choices) for stream_id in stream_ids}
        if ending is Ending.FINISH:
            for queue in queues.values():
                queue.append(finish())
        requests = _mixed(choices, queues)
        if choices.seldom():
            wild = self.messages.wild(choices, pb.ModerateStreamsRequest)
            requests.insert(choices.below(len(requests) + 1), wild)
        return Sequence.ended(choices, requests, ending)

    def request(self, choices: Choices) -> Request:
        """One of the other calls."""
        kind = choices.pick((pb.ClassifyRequest, pb.ClassifyRequest, pb.GetTokenizerRequest, pb.GetServerInfoRequest))
        make = self.messages.wild if choices.seldom() else self.messages.near
        return Request(make(choices, kind), choices.pick(TIMEOUTS_S) if choices.seldom() else WAIT_S)

    def _conversation(self, choices: Choices) -> list[pb.ModerateStreamRequest]:
        """The messages of one stream, without an end."""
        contract, requests, num_late = Contract(self._served), list[pb.ModerateStreamRequest](), 0
        for _ in range(choices.below(MAX_MESSAGES + 1)):
            request = self._next(choices, contract)
            requests.append(request)
            contract.take(request)
            num_late += contract.is_over or contract.is_finished
            if num_late > NUM_LATE_MESSAGES:
                break
        return requests

    def _next(self, choices: Choices, contract: Contract) -> pb.ModerateStreamRequest:
        """What may come next, mostly."""
        die = choices.below(32)
        if die == 31:
            return self.messages.wild(choices, pb.ModerateStreamRequest)
        if die == 30:
            return self.messages.near(choices, pb.ModerateStreamRequest)
        if contract.options is None:
            return pb.ModerateStreamRequest(open=self.messages.near(choices, pb.StreamOpen))
        if die >= 26:
            kept = near_index(choices, contract.window_index, len(contract.ids))
            return pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=kept))
        if die >= 22:
            return pb.ModerateStreamRequest(user_turn=self.messages.near(choices, pb.UserTurn))
        if contract.is_text:
            return pb.ModerateStreamRequest(text=self.messages.near(choices, pb.PushText))
        token_ids = answer(choices, self._served.limits.max_tokens_per_message)
        start_index = near_index(choices, len(contract.ids), len(contract.ids)) if die >= 16 else None
        return pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=token_ids, start_index=start_index))


@st.composite
def sequences(draw: st.DrawFn, make: Callable[[Choices], Any], number: int) -> tuple[Any, ...]:
    """So many at a time, as `make` makes them; of one draw, since hypothesis likes to repeat one draw in another."""
    data = draw(st.binary(min_size=number * NUM_BYTES, max_size=number * NUM_BYTES))
    return tuple(make(Choices(data[start : start + NUM_BYTES])) for start in range(0, len(data), NUM_BYTES))


def _mixed(choices: Choices, queues: dict[int, list[pb.ModerateStreamRequest]]) -> list[pb.ModerateStreamsRequest]:
    """The messages of all streams in any order that keeps each one's own; single tokens packed now and then."""
    mixed, message = list[pb.ModerateStreamsRequest](), pb.ModerateStreamsRequest()
    while waiting := [stream_id for stream_id, queue in queues.items() if queue]:
        stream_id = choices.pick(waiting)
        request = queues[stream_id].pop(0)
        begins_anew = choices.flip()
        packs = message.HasField("step") or begins_anew
        is_packed = packs and len(request.tokens.token_ids) == 1 and not request.tokens.HasField("start_index")
        # A step is taken after the requests of its message, so no request may follow one in it.
        if begins_anew or (message.HasField("step") and not is_packed):
            mixed.append(message)
            message = pb.ModerateStreamsRequest()
        if is_packed:
            message.step.stream_ids.append(stream_id)
            message.step.token_ids.append(request.tokens.token_ids[0])
        else:
            message.requests.add(stream_id=stream_id, request=request)
    return [*mixed, message]
