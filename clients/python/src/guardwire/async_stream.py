"""One moderated stream, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import grpc
from grpc import aio

from guardwire.call_outcome import CallOutcome
from guardwire.errors import Cancelled, DeadlineExceeded, GuardwireError, broken_contract
from guardwire.results import Decision, StreamOpened, Update
from guardwire.stream_protocol import Request, StreamProtocol
from guardwire.v1 import moderation_pb2 as pb

StartCall = Callable[[], aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]]


class AsyncModerateStream:
    """One answer that is judged while it is being written; made by `AsyncClient.moderate`.

    Use it as `async with`: entering opens the stream, leaving always cancels what is not over. Any task may push and
    any task may iterate. A task of the stream's own reads all the time, so the server never waits for the caller, and
    `decision` is fresh whether or not anyone iterates; updates wait until they are asked for, at most one verdict for
    every pushed token. When the server ends the stream by itself (`end_on_block`), pushing does nothing more; when
    the stream failed, pushing and iterating raise its error.
    """

    def __init__(self, start: StartCall, protocol: StreamProtocol, open_timeout_s: float | None) -> None:
        self._start = start
        self._protocol = protocol
        self._open_timeout_s = open_timeout_s
        self._call: aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._updates: asyncio.Queue[Update | None] = asyncio.Queue()
        self._opened_or_over = asyncio.Event()
        self._over = asyncio.Event()
        self._left = False
        self._failure: GuardwireError | None = None

    @property
    def opened(self) -> StreamOpened:
        """What the stream was opened with."""
        if self._protocol.opened is None:
            raise RuntimeError("the stream is open only inside its `async with` block")
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
            InvalidRequest: Something is no token id, or the stream takes text or is finished; it goes on.
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
        await self._send(self._protocol.finish, last=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Update:
        update = await self._updates.get()
        if update is not None:
            return update
        self._updates.put_nowait(None)  # whoever asks again learns it again
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        """Opens the stream.

        Raises:
            DeadlineExceeded: The server did not open it within the client's `timeout_s`.
            GuardwireError: The server refused it.
        """
        if self._call is not None:
            raise RuntimeError("a stream can be entered once")
        self._call = call = self._start()
        self._reader = asyncio.create_task(self._read(call, CallOutcome(call)), name="guardwire-stream")
        try:
            async with asyncio.timeout(self._open_timeout_s):
                await self._send(lambda: [self._protocol.open])
                await self._opened_or_over.wait()
            if self._failure is not None:
                raise self._failure
        except TimeoutError:
            await self._leave()
            message = f"the stream did not open within {self._open_timeout_s} s"
            raise DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED) from None
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        self._left = True
        if self._call is not None and self._reader is not None:
            self._call.cancel()
            await asyncio.wait([self._reader])

    async def _send(self, build: Callable[[], list[Request]], *, last: bool = False) -> None:
        if self._call is None:
            raise RuntimeError("the stream is open only inside its `async with` block")
        async with self._writing:
            requests = build()
            try:
                for request in requests:
                    if not self._over.is_set():
                        await self._call.write(request)
                if last:
                    await self._call.done_writing()
            except (grpc.RpcError, aio.BaseError, asyncio.InvalidStateError):
                await self._over.wait()  # the call has ended: the reader knows how
            except asyncio.CancelledError:
                if self._is_cancelled():
                    raise
                await self._over.wait()
        if self._failure is not None:
            raise self._failure

    def _is_cancelled(self) -> bool:
        """Whether the present task is, and not only the call that it was writing to."""
        task = asyncio.current_task()
        return not self._left or (task is not None and task.cancelling() > 0)

    async def _read(
        self, call: aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse], outcome: CallOutcome
    ) -> None:
        last: aio.AioRpcError | None = None
        try:
            async for response in call:
                update = self._protocol.receive(response)
                if update is not None:
                    self._updates.put_nowait(update)
                self._opened_or_over.set()
        except aio.AioRpcError as error:
            last = error
        except asyncio.CancelledError:
            self._end(Cancelled("the stream was left", grpc.StatusCode.CANCELLED))
        except Exception as error:  # whatever it is, it is the caller's to see
            call.cancel()
            self._end(error if isinstance(error, GuardwireError) else broken_contract(f"unreadable: {error!r}"))
        if not self._over.is_set():
            self._end(outcome.error(last))

    def _end(self, failure: GuardwireError | None) -> None:
        if self._protocol.summary is None:
            self._failure = failure or broken_contract("the server ended the stream without a summary")
        self._updates.put_nowait(None)
        self._over.set()
        self._opened_or_over.set()
