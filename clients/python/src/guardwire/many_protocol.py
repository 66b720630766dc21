"""What the caller of ModerateStreams says, without I/O.

Theory of operation: requests wait here, by stream, while a message is being written; the next message then takes what
has gathered, each stream's in its order. The contract has no word for giving up one stream of a call. A stream that is
left before its end is therefore asked to `finish`, what it had still to send is dropped, and so is what still comes for
it until its end. Ids are never used twice on a call, so whatever comes late for a stream is nobody else's.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field

from guardwire.convert import requests as requests_of
from guardwire.errors import invalid_request
from guardwire.stream_protocol import Request
from guardwire.v1 import moderation_pb2 as pb

MAX_WAITING_REQUESTS = 16
"""How many requests of one stream wait before its next push does: enough for what a step of a model makes of it."""

MAX_MESSAGE_BYTES = 1 << 20
"""Where a message is full, unless its only request is larger: a quarter of what a server takes."""

MAX_REQUEST_BYTES = (1 << 22) - 64
"""What fits into gRPC's 4 MiB with what a message adds; a larger request would end the call for every stream."""


@dataclass(slots=True)
class _Stream:
    waiting: deque[Request] = field(default_factory=deque)
    begun: bool = False  # `open` was taken
    finished: bool = False  # `finish` was taken
    left: bool = False


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
        """Takes a stream's next requests; drops them when it has ended or was left.

        Raises:
            InvalidRequest: One is larger than any message may be; none was taken.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.left or not requests:
            return
        for request in requests:
            if request.ByteSize() > MAX_REQUEST_BYTES:
                kind = request.WhichOneof("request") or ""
                message = f"{request.ByteSize()} bytes are too many for one message, at most {MAX_REQUEST_BYTES}"
                raise invalid_request(message, kind)
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
        message = pb.ModerateStreamsRequest()
        num_bytes = 0
        while self._waiting:
            stream_id = next(iter(self._waiting))
            stream = self._streams[stream_id]
            item = pb.StreamRequest(stream_id=stream_id, request=stream.waiting[0])
            num_bytes += item.ByteSize()
            if message.requests and num_bytes > MAX_MESSAGE_BYTES:
                break
            message.requests.append(item)
            stream.begun |= item.request.HasField("open")
            stream.finished |= item.request.HasField("finish")
            stream.waiting.popleft()
            if not stream.waiting:
                del self._waiting[stream_id]
        return message if message.requests else None
