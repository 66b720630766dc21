"""What carries the messages of one asyncio stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from grpc import aio

from guardwire.async_call import AsyncCall
from guardwire.convert import requests
from guardwire.convert.requests import Request
from guardwire.errors import GuardwireError
from guardwire.stream_protocol import Response
from guardwire.tracing import BeginCallSpan, CallMetadata, StreamSpan, Untraced, start_call
from guardwire.v1 import moderation_pb2 as pb

Receive = Callable[[Response], None]
End = Callable[[GuardwireError | None], None]

StartCall = Callable[[CallMetadata], aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]]


class StreamTransport(Protocol):
    """Carries one stream: on a call of its own, or on one that many streams share."""

    span: StreamSpan
    """The stream's; `start` begins it, and the stream ends it."""

    def start(self, receive: Receive, end: End) -> None:
        """Begins.

        Args:
            receive: Takes a response; what it raises ends the stream.
            end: Takes what the stream failed with, None when it ended well; may be called again and by `start` itself.
        """
        ...

    async def send(self, build: Callable[[], list[Request]]) -> None:
        """Sends what `build` makes, in the order of the calls of `build`; drops it once the stream is over."""
        ...

    async def leave(self) -> None:
        """Ends the stream if it is not over: nothing of it stays behind."""
        ...


class OwnCall:
    """A ModerateStream call: one stream. Owner: the stream."""

    def __init__(self, start: StartCall, begin_span: BeginCallSpan) -> None:
        self.span: StreamSpan = Untraced()
        self._start = start
        self._begin_span = begin_span
        self._call: AsyncCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse] | None = None
        self._sending = asyncio.Lock()

    def start(self, receive: Receive, end: End) -> None:
        """Starts the call."""
        self.span = span = self._begin_span()
        self._call = AsyncCall(start_call(span, self._start), receive, end)

    async def send(self, build: Callable[[], list[Request]]) -> None:
        """Writes each request when grpc has taken the one before; `finish` ends the caller's half."""
        assert self._call is not None  # the stream starts before it sends
        async with self._sending:
            for message in map(requests.message, build()):
                await self._call.write(message)
                if message.HasField("finish"):
                    await self._call.done_writing()

    async def leave(self) -> None:
        """Cancels the call."""
        if self._call is not None:
            await self._call.leave()
