"""What the caller of ModerateStreams says, without I/O.

Theory of operation: requests wait here, by stream, while a message is being written; the next message then takes what
has gathered, each stream's in its order. The contract has no word for giving up one stream of a call. A stream that is
left before its end is therefore asked to `finish`, what it had still to send is dropped, and so is what still comes for
it until its end. Ids are never used twice on a call, so whatever comes late for a stream is nobody else's.

Single tokens travel packed, as the message's `step`, which the server takes after its `requests`: only those that no
other request of their stream follows can go there. The step has no start indices. They would say no more than the order
of the messages does, on a resumed stream too: the protocol of a stream counts, and pushes nothing twice.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

from guardwire.convert import requests as requests_of
from guardwire.convert.requests import Request, SingleToken
from guardwire.v1 import moderation_pb2 as pb

MAX_WAITING_REQUESTS = 16
"""How many requests of one stream wait before its next push does: enough for what a step of a model makes of it."""

MAX_MESSAGE_BYTES = 1 << 20
"""Where a message is full, unless its only request is larger: a quarter of what a server takes. Larger requests than a
server takes never come here: they would end the call for every stream, and the stream's protocol has refused them."""

MAX_REQUESTS = 16_384
"""Requests that a server takes in one message."""

MAX_STEP_TOKENS = 16_384
"""Tokens that a server takes in one step."""

_ENVELOPE_BYTES = 21
"""What a message adds to a request, at most: the tags, two lengths below 4 MiB and a stream id, as varints."""

_STEP_TOKEN_BYTES = 15
"""What a token of a step takes, at most: its stream id and its own, as varints."""


@dataclass(slots=True)
class _Stream:
    waiting: deque[Request] = field(default_factory=deque)
    begun: bool = False  # `open` was taken
    finished: bool = False  # `finish` was taken
    left: bool = False


class _Message:
    """A message that is being filled: its requests, its step and how large they are. Owner: `take_message`."""

    def __init__(self) -> None:
        self._message = pb.ModerateStreamsRequest()
        self._stream_ids: list[int] = []
        self._token_ids: list[int] = []
        self._num_bytes = 0

    def take(self, stream_id: int, stream: _Stream) -> bool:
        """Takes what waits of a stream, in its order; False when not all of it fits."""
        waiting = stream.waiting
        num_packed = _num_last_tokens(waiting)
        while len(waiting) > num_packed:
            request = requests_of.message(waiting[0])
            is_full = len(self._message.requests) >= MAX_REQUESTS
            if is_full or not self._fits(request.ByteSize() + _ENVELOPE_BYTES):
                return False
            self._message.requests.add(stream_id=stream_id, request=request)
            stream.begun |= request.HasField("open")
            stream.finished |= request.HasField("finish")
            waiting.popleft()
        while waiting and isinstance(waiting[0], SingleToken):
            if len(self._token_ids) >= MAX_STEP_TOKENS or not self._fits(_STEP_TOKEN_BYTES):
                return False
            self._stream_ids.append(stream_id)
            self._token_ids.append(waiting[0].token_id)
            waiting.popleft()
        return True

    def build(self) -> pb.ModerateStreamsRequest | None:
        """The message; None when it is empty."""
        if self._stream_ids:
            self._message.step.stream_ids.extend(self._stream_ids)
            self._message.step.token_ids.extend(self._token_ids)
        return self._message if self._num_bytes else None

    def _fits(self, num_bytes: int) -> bool:
        """Whether the message takes so much more, and counts it if so; whatever is first is taken."""
        if self._num_bytes and self._num_bytes + num_bytes > MAX_MESSAGE_BYTES:
            return False
        self._num_bytes += num_bytes
        return True


def _num_last_tokens(waiting: deque[Request]) -> int:
    """How many single tokens nothing else follows."""
    num_tokens = 0
    for request in reversed(waiting):
        if not isinstance(request, SingleToken):
            break
        num_tokens += 1
    return num_tokens


class ManyProtocol:
    """The streams of one call that have not ended, and the requests of theirs that are not written yet.

    Owner: the call. Invariant: `_waiting` names the streams with requests to send, in the order in which they came to
    have them.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._waiting: dict[int, None] = {}

    @property
    def is_empty(self) -> bool:
        """True when the server has no stream of this call any more."""
        return not self._streams

    def new_stream(self) -> int:
        """The id of a new stream; its first request opens it."""
        stream_id = next(self._ids)
        self._streams[stream_id] = _Stream()
        return stream_id

    def has_room(self, stream_id: int) -> bool:
        """Whether the stream's next requests may come; also once nothing of it is sent any more."""
        stream = self._streams.get(stream_id)
        return stream is None or len(stream.waiting) < MAX_WAITING_REQUESTS

    def add(self, stream_id: int, requests: list[Request]) -> None:
        """Takes a stream's next requests; drops them when it has ended or was left."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.left or not requests:
            return
        stream.waiting += requests
        self._waiting[stream_id] = None

    def leave(self, stream_id: int) -> None:
        """Gives a stream up; does nothing when it has ended."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.left:
            return
        stream.left = True
        stream.waiting.clear()
        self._waiting.pop(stream_id, None)
        if not stream.begun:
            del self._streams[stream_id]
        elif not stream.finished:
            stream.waiting.append(requests_of.finish())
            self._waiting[stream_id] = None

    def end(self, stream_id: int) -> None:
        """The server has ended a stream; what it had still to send is dropped. Unknown ids do nothing."""
        self._streams.pop(stream_id, None)
        self._waiting.pop(stream_id, None)

    def clear(self) -> None:
        """The call is over, and every stream with it."""
        self._streams.clear()
        self._waiting.clear()

    def take_message(self) -> pb.ModerateStreamsRequest | None:
        """The next message to write, as much as fits of what waits; None when nothing does."""
        message = _Message()
        for stream_id in list(self._waiting):
            if not message.take(stream_id, self._streams[stream_id]):
                break
            del self._waiting[stream_id]
        return message.build()
