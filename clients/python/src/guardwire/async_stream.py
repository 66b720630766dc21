"""One moderated stream, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from guardwire.async_transport import StreamTransport
from guardwire.convert.requests import Request
from guardwire.errors import DeadlineExceeded, GuardwireError, broken_contract
from guardwire.results import Decision, StreamOpened, Update
from guardwire.stream_protocol import Response, StreamProtocol
from guardwire.unread_updates import UnreadUpdates


class AsyncModerateStream:
    """One answer that is judged while it is being written; made by `moderate` of a client or of its many streams.

    Use it as `async with`: entering opens the stream, leaving always ends what is not over. Where no block fits,
    `await` it to open it, and `leave` it. Any task may push and any task may iterate. The stream reads all the time, so
    the server never waits for the caller, and `decision` is fresh whether or not anyone iterates; updates wait until
    they are asked for, up to the bound in `guardwire.unread_updates`. When the server ends the stream by itself
    (`end_on_block`), pushing does nothing more; when the stream failed, pushing and iterating raise its error.
    """

    def __init__(self, transport: StreamTransport, protocol: StreamProtocol, open_timeout_s: float | None) -> None:
        self._transport = transport
        self._protocol = protocol
        self._open_timeout_s = open_timeout_s
        self._unread = UnreadUpdates()
        self._changed = asyncio.Event()  # there is an update to take, or the stream is open, or over
        self._started = False
        self._entered = False
        self._over = False
        self._failure: GuardwireError | None = None

    @property
    def opened(self) -> StreamOpened:
        """What the stream was opened with."""
        if self._protocol.opened is None:
            raise RuntimeError("the stream was not opened: use `async with` or `await`")
        return self._protocol.opened

    @property
    def decision(self) -> Decision | None:
        """The highest decision in force for the last user message or the answer to it; None when there is none."""
        return self._protocol.decision

    @property
    def blocked(self) -> bool:
        """True while a BLOCK is in force that is not only observed: the answer should be cut."""
        return self._protocol.blocked

    @property
    def num_tokens(self) -> int:
        """Tokens pushed and not rolled back; 0 on text streams, where the server counts."""
        return self._protocol.num_tokens

    async def push(self, token_ids: Iterable[int]) -> None:
        """Pushes the answer's next tokens, in several messages where the server's limit asks for it.

        Raises:
            InvalidRequest: Something is no token id, a message would be larger than a server takes, or the stream takes
                text or is finished; it goes on.
            GuardwireError: The stream failed.
        """
        await self._send(lambda: self._protocol.push(token_ids))

    async def push_text(self, text: str, *, flush: bool = False) -> None:
        """Pushes the next piece of the answer's text; raises as `push` does.

        Args:
            text: The piece; the newest word waits for the text after it.
            flush: Judges that word too, as if the text ended here.
        """
        await self._send(lambda: self._protocol.push_text(text, flush))

    async def rollback(self, num_tokens_kept: int) -> None:
        """Forgets the answer's newest tokens.

        Args:
            num_tokens_kept: How many of all tokens pushed on the stream stay; at least those of earlier answers.

        Raises:
            InvalidRequest: So many tokens cannot be kept; the stream goes on.
            GuardwireError: The stream failed.
        """
        await self._send(lambda: self._protocol.rollback(num_tokens_kept))

    async def user_turn(self, content: str | Iterable[int]) -> None:
        """Closes the answer and adds the user's next message, as text or as token ids; raises as `push` does."""
        await self._send(lambda: self._protocol.user_turn(content))

    async def finish(self) -> None:
        """Asks for the summary, the last update; nothing may be pushed any more. Raises as `push` does."""
        await self._send(self._protocol.finish)

    async def leave(self) -> None:
        """Ends the stream if it is not over; what comes for it later is dropped. Leaving again does nothing."""
        if self._started:
            await self._transport.leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        """The next update.

        Raises:
            UpdatesLost: More waited than the stream keeps; the stream goes on, and so may iterating.
            GuardwireError: The stream failed.
        """
        while (update := self._unread.take()) is None:
            if self._failure is not None:
                raise self._failure
            if self._over:
                raise StopAsyncIteration
            await self._wait_changed()
        return update

    def __await__(self) -> Generator[Any, None, Self]:
        """Opens the stream, to be left with `leave`; raises as entering does."""
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        """Opens the stream, unless it was awaited.

        Raises:
            DeadlineExceeded: The server did not open it within the client's `timeout_s`.
            GuardwireError: The server refused it.
        """
        if self._entered:
            raise RuntimeError("a stream can be entered once")
        self._entered = True
        return self if self._started else await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def _open(self) -> Self:
        if self._started:
            raise RuntimeError("a stream can be opened once")
        self._transport.start(self._receive, self._end)
        self._started = True
        try:
            async with asyncio.timeout(self._open_timeout_s):
                await self._send(lambda: [self._protocol.open])
                while self._protocol.opened is None and not self._over:
                    await self._wait_changed()
            if self._failure is not None:
                raise self._failure
        except TimeoutError:
            failure = DeadlineExceeded(
                f"the stream did not open within {self._open_timeout_s} s", grpc.StatusCode.DEADLINE_EXCEEDED
            )
            self._end(failure)  # leaving cancels the call, which is not what it ends with
            await self.leave()
            raise failure from None
        except BaseException:
            await self.leave()
            raise
        return self

    async def _send(self, build: Callable[[], list[Request]]) -> None:
        if not self._started:
            raise RuntimeError("the stream was not opened: use `async with` or `await`")
        await self._transport.send(build)
        if self._failure is not None:
            raise self._failure

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _receive(self, response: Response) -> None:
        update = self._protocol.receive(response)
        if update is not None:
            self._unread.add(update)
        self._changed.set()

    def _end(self, failure: GuardwireError | None) -> None:
        if self._over:
            return
        if self._protocol.summary is None:
            self._failure = failure or broken_contract("the server ended the stream without a summary")
        self._over = True
        self._changed.set()
        self._transport.span.end(self._failure, self._protocol)
