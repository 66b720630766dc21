"""Many moderated streams on one call, for asyncio."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from guardwire.async_shared_call import SharedCall, SharedCallStream, StartSharedCall
from guardwire.async_stream import AsyncModerateStream
from guardwire.conversation import Messages
from guardwire.options import ModerateKeywords, ModerateOptions
from guardwire.stream_protocol import StreamProtocol
from guardwire.tracing import BeginCallSpan


class AsyncManyStreams:
    """Many answers that are judged on one call; made by `AsyncClient.moderate_many`.

    Use it as `async with`; leaving ends every stream that is not over. Pushing returns before anything is on the wire:
    whatever the streams push while a message is being written goes out as the next one, so a model's server sends the
    tokens of a whole step together. A push waits only while too many requests of its own stream do. An error ends its
    stream alone; what ends the call ends all of them, each with the error, and a new call must be begun.
    """

    def __init__(self, start: StartSharedCall, begin_span: BeginCallSpan, open_timeout_s: float | None) -> None:
        self._call = SharedCall(start, begin_span)
        self._open_timeout_s = open_timeout_s

    def moderate(
        self, messages: Messages | None = None, *, timeout_s: float | None = None, **options: Unpack[ModerateKeywords]
    ) -> AsyncModerateStream:
        """Judges an answer token by token while it is being written, as `AsyncClient.moderate` does.

        Args:
            messages: The conversation up to the answer; the last message is the user's. None with `token_ids`.
            timeout_s: After how long the stream ends with DeadlineExceeded, kept here; None: never.
            **options: The fields of `ModerateOptions`.

        Returns:
            The stream, to be used as `async with` or with `await`, while the call is entered.

        Raises:
            InvalidRequest: The conversation has none of the accepted forms, or is larger than a server takes.
            TypeError: An option does not exist.
        """
        protocol = StreamProtocol(messages, ModerateOptions(**options))
        return AsyncModerateStream(SharedCallStream(self._call, timeout_s), protocol, self._open_timeout_s)

    async def __aenter__(self) -> Self:
        """Starts the call; that it cannot be made shows when a stream opens."""
        self._call.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._call.leave(in_good_order=error is None)
