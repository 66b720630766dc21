"""A ModerateStreams call and its streams, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable

import grpc
from grpc import aio

from guardwire.async_call import AsyncCall
from guardwire.async_transport import End, Receive
from guardwire.convert import responses
from guardwire.convert.requests import Request
from guardwire.errors import DeadlineExceeded, GuardwireError, stream_left, unreadable
from guardwire.many_protocol import ManyProtocol
from guardwire.stream_protocol import Response
from guardwire.tracing import BeginCallSpan, CallMetadata, CallSpan, StreamSpan, Untraced, start_call
from guardwire.v1 import moderation_pb2 as pb

StartSharedCall = Callable[[CallMetadata], aio.StreamStreamCall[pb.ModerateStreamsRequest, pb.ModerateStreamsResponse]]

END_TIMEOUT_S = 5.0
"""How long leaving waits for the server to end a call whose streams have all ended; then it is cancelled."""


class SharedCall:
    """One call for many streams. Owner: the `AsyncManyStreams`.

    Two tasks of its own serve it: one reads and hands every response to its stream, one writes what has gathered.
    Invariant: `_streams` holds those that want to hear of the server; `_protocol` knows also those that were left.
    """

    def __init__(self, start: StartSharedCall, begin_span: BeginCallSpan) -> None:
        self._start = start
        self._begin_span = begin_span
        self._span: CallSpan = Untraced()
        self._call: AsyncCall[pb.ModerateStreamsRequest, pb.ModerateStreamsResponse] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._protocol = ManyProtocol()
        self._streams: dict[int, SharedCallStream] = {}
        self._to_write = asyncio.Event()  # there may be something to write, or nothing will be written any more
        self._room = asyncio.Event()  # something was taken to be written, or need not be
        self._is_leaving = False
        self._failure: GuardwireError | None = None

    def start(self) -> None:
        """Starts the call, once."""
        if self._call is not None:
            raise RuntimeError("a call can be entered once")
        self._span = self._begin_span()
        self._call = AsyncCall(start_call(self._span, self._start), self._receive, self._end)
        self._writer = asyncio.create_task(self._write(self._call), name="guardwire-writer")

    async def leave(self, *, in_good_order: bool) -> None:
        """Ends the call: half-closes it when that is asked for and every stream has ended, and cancels it otherwise."""
        if self._call is None or self._writer is None:
            return
        self._is_leaving = True
        if in_good_order and self._protocol.is_empty:
            self._to_write.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._call.wait_over()
        await self._call.leave()
        await asyncio.wait([self._writer])

    def begin_stream_span(self) -> StreamSpan:
        """Begins the span of a stream of this call."""
        return self._span.begin_stream()

    def add(self, stream: SharedCallStream) -> int:
        """Takes a new stream in and gives its id; ends it at once where the call is over."""
        if self._call is None:
            raise RuntimeError("streams open only inside the `async with` block of their call")
        stream_id = self._protocol.new_stream()
        if self._is_leaving:
            stream.end(stream_left())
        elif self._call.is_over:
            stream.end(copy.copy(self._failure))
        else:
            self._streams[stream_id] = stream
            return stream_id
        self._protocol.end(stream_id)
        return stream_id

    async def wait_room(self, stream_id: int) -> None:
        """Waits until a stream's next requests may come, or nothing of it will be sent any more."""
        while not self._protocol.has_room(stream_id):
            self._room.clear()
            await self._room.wait()

    def send(self, stream_id: int, requests: list[Request]) -> None:
        """Takes a stream's next requests, to be written with what else gathers; drops them when it is over."""
        self._protocol.add(stream_id, requests)
        self._to_write.set()

    def forget(self, stream_id: int) -> None:
        """Lets the server finish a stream that nobody wants to hear of any more; does nothing when it has ended."""
        self._protocol.leave(stream_id)
        self._streams.pop(stream_id, None)
        self._to_write.set()
        self._room.set()

    async def _write(self, call: AsyncCall[pb.ModerateStreamsRequest, pb.ModerateStreamsResponse]) -> None:
        while not call.is_over:
            message = self._protocol.take_message()
            if message is not None:
                self._room.set()
                await call.write(message)
            elif self._is_leaving:
                await call.done_writing()
                return
            else:
                self._to_write.clear()
                await self._to_write.wait()

    def _receive(self, message: pb.ModerateStreamsResponse) -> None:
        for stream_id, verdict in responses.packed_verdicts(message.step):
            stream = self._streams.get(stream_id)
            if stream is not None:  # else it was left, or has ended
                stream.receive(verdict)
        for item in message.responses:
            stream = self._streams.get(item.stream_id)
            has_ended = item.HasField("error") or item.response.HasField("summary")
            if has_ended:
                self._protocol.end(item.stream_id)
                self._streams.pop(item.stream_id, None)
            if stream is None:
                continue  # it was left, or had ended before the server read the last of it
            if item.HasField("error"):
                stream.end(responses.stream_error(item.error))
                continue
            stream.receive(item.response)
            if has_ended:
                stream.end(None)
        self._room.set()

    def _end(self, failure: GuardwireError | None) -> None:
        self._failure = failure
        streams = list(self._streams.values())
        self._streams.clear()
        self._protocol.clear()
        for stream in streams:
            stream.end(copy.copy(failure))  # one each: an error that several tasks raise gathers their tracebacks
        self._to_write.set()
        self._room.set()
        self._span.end(failure)


class SharedCallStream:
    """The `StreamTransport` of one stream of a shared call. Owner: the stream."""

    def __init__(self, call: SharedCall, timeout_s: float | None) -> None:
        self.span: StreamSpan = Untraced()
        self._call = call
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None
        self._sending = asyncio.Lock()
        self._stream_id = 0  # none yet: the ids of a call begin at 1
        self._receive: Receive
        self._end: End

    def start(self, receive: Receive, end: End) -> None:
        """Joins the call."""
        self._receive, self._end = receive, end
        self.span = self._call.begin_stream_span()
        self._stream_id = self._call.add(self)
        if self._timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    async def send(self, build: Callable[[], list[Request]]) -> None:
        """Adds requests to the next message; waits only while too many of this stream's wait already."""
        async with self._sending:
            await self._call.wait_room(self._stream_id)
            self._call.send(self._stream_id, build())

    async def leave(self) -> None:
        """Lets the server finish the stream, and drops what still comes for it."""
        self._fail(stream_left())

    def receive(self, response: Response) -> None:
        """Hands a response to the stream; one that breaks the contract costs this stream alone."""
        try:
            self._receive(response)
        except Exception as error:  # whatever it is, it is the caller's to see
            self._fail(unreadable(error))

    def end(self, failure: GuardwireError | None) -> None:
        """Tells the stream that it is over, unless it knows."""
        if self._timer is not None:
            self._timer.cancel()
        self._end(failure)

    def _fail(self, failure: GuardwireError) -> None:
        self._call.forget(self._stream_id)
        self.end(failure)

    def _expire(self) -> None:
        message = f"the stream took longer than {self._timeout_s} s"
        self._fail(DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED))
