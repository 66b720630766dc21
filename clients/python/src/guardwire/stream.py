"""One moderated stream, for threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

import grpc

from guardwire.convert import requests
from guardwire.convert.requests import Request
from guardwire.errors import (
    Cancelled,
    DeadlineExceeded,
    GuardwireError,
    broken_contract,
    from_rpc_error,
    stream_left,
    unreadable,
)
from guardwire.results import Decision, StreamOpened, Update
from guardwire.stream_protocol import StreamProtocol
from guardwire.tracing import BeginCallSpan, CallMetadata, StreamSpan, Untraced, start_call
from guardwire.unread_updates import UnreadUpdates
from guardwire.v1 import moderation_pb2 as pb


class ResponseCall(Protocol):
    """What a stream needs of grpc's call."""

    def __iter__(self) -> Iterator[pb.ModerateStreamResponse]:
        """The responses; raises `grpc.RpcError` at the end of a call that failed."""
        ...

    def cancel(self) -> object:
        """Ends the call; does nothing when it is over."""
        ...


StartCall = Callable[[CallMetadata, Iterator[pb.ModerateStreamRequest]], ResponseCall]


class ModerateStream:
    """One answer that is judged while it is being written; made by `Client.moderate`.

    The twin of `AsyncModerateStream`, with the same verbs. Use it as `with`: entering opens the stream, leaving always
    cancels what is not over. Any thread may push, which never blocks, and any thread may iterate. A thread of the
    stream's own reads all the time; what is pushed waits in a queue that grpc empties as fast as the server takes it.
    Updates wait until they are asked for, up to the bound in `guardwire.unread_updates`.
    """

    def __init__(
        self, start: StartCall, begin_span: BeginCallSpan, protocol: StreamProtocol, open_timeout_s: float | None
    ) -> None:
        self._start = start
        self._begin_span = begin_span
        self._span: StreamSpan = Untraced()
        self._protocol = protocol
        self._open_timeout_s = open_timeout_s
        # Around the protocol, the unread updates and the end, and so that requests queue in the order they were made.
        self._changed = threading.Condition(threading.Lock())
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._unread = UnreadUpdates()
        self._call: ResponseCall | None = None
        self._reader: threading.Thread | None = None
        self._opened_or_over = threading.Event()
        self._over = threading.Event()
        self._left = False
        self._failure: GuardwireError | None = None

    @property
    def opened(self) -> StreamOpened:
        """What the stream was opened with."""
        if self._protocol.opened is None:
            raise RuntimeError("the stream is open only inside its `with` block")
        return self._protocol.opened

    @property
    def decision(self) -> Decision | None:
        """The highest decision in force for the last user message or the answer to it; None when there is none."""
        with self._changed:
            return self._protocol.decision

    @property
    def blocked(self) -> bool:
        """True while a BLOCK is in force that is not only observed: the answer should be cut."""
        with self._changed:
            return self._protocol.blocked

    @property
    def num_tokens(self) -> int:
        """Tokens pushed and not rolled back; 0 on text streams, where the server counts."""
        return self._protocol.num_tokens

    def push(self, token_ids: Iterable[int]) -> None:
        """Pushes the answer's next tokens, in several messages where the server's limit asks for it.

        Raises:
            InvalidRequest: Something is no token id, a message would be larger than a server takes, or the stream takes
                text or is finished; it goes on.
            GuardwireError: The stream failed.
        """
        self._send(lambda: self._protocol.push(token_ids))

    def push_text(self, text: str, *, flush: bool = False) -> None:
        """Pushes the next piece of the answer's text; raises as `push` does.

        Args:
            text: The piece; the newest word waits for the text after it.
            flush: Judges that word too, as if the text ended here.
        """
        self._send(lambda: self._protocol.push_text(text, flush))

    def rollback(self, num_tokens_kept: int) -> None:
        """Forgets the answer's newest tokens.

        Args:
            num_tokens_kept: How many of all tokens pushed on the stream stay; at least those of earlier answers.

        Raises:
            InvalidRequest: So many tokens cannot be kept; the stream goes on.
            GuardwireError: The stream failed.
        """
        self._send(lambda: self._protocol.rollback(num_tokens_kept))

    def user_turn(self, content: str | Iterable[int]) -> None:
        """Closes the answer and adds the user's next message, as text or as token ids; raises as `push` does."""
        self._send(lambda: self._protocol.user_turn(content))

    def finish(self) -> None:
        """Asks for the summary, the last update; nothing may be pushed any more. Raises as `push` does."""
        self._send(lambda: [*self._protocol.finish(), None])

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Update:
        """The next update.

        Raises:
            UpdatesLost: More waited than the stream keeps; the stream goes on, and so may iterating.
            GuardwireError: The stream failed.
        """
        with self._changed:
            while (update := self._unread.take()) is None:
                if self._failure is not None:
                    raise self._failure
                if self._over.is_set():
                    raise StopIteration
                self._changed.wait()
            return update

    def __enter__(self) -> Self:
        """Opens the stream.

        Raises:
            DeadlineExceeded: The server did not open it within the client's `timeout_s`.
            GuardwireError: The server refused it.
        """
        if self._call is not None:
            raise RuntimeError("a stream can be entered once")
        waiting: Iterator[Request] = iter(self._requests.get, None)
        self._span = span = self._begin_span()
        self._call = start_call(span, lambda metadata: self._start(metadata, map(requests.message, waiting)))
        self._reader = threading.Thread(target=self._read, args=(self._call,), name="guardwire-stream", daemon=True)
        self._reader.start()
        try:
            self._send(lambda: [self._protocol.open])
            if not self._opened_or_over.wait(self._open_timeout_s):
                message = f"the stream did not open within {self._open_timeout_s} s"
                self._end(DeadlineExceeded(message, grpc.StatusCode.DEADLINE_EXCEEDED))  # before leaving ends it
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._left = True
        if self._call is not None and self._reader is not None:
            self._call.cancel()
            self._reader.join()

    def _send(self, build: Callable[[], Sequence[Request | None]]) -> None:
        if self._call is None:
            raise RuntimeError("the stream is open only inside its `with` block")
        with self._changed:
            for request in build():
                if not self._over.is_set():
                    self._requests.put(request)
        if self._failure is not None:
            raise self._failure

    def _read(self, call: ResponseCall) -> None:
        failure: GuardwireError | None = None
        try:
            for response in call:
                with self._changed:
                    update = self._protocol.receive(response)
                    if update is not None:
                        self._unread.add(update)
                        self._changed.notify_all()
                self._opened_or_over.set()
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if self._left and isinstance(failure, Cancelled):
                failure = stream_left()
        except Exception as error:  # whatever it is, it is the caller's to see
            call.cancel()
            failure = unreadable(error)
        self._end(failure)

    def _end(self, failure: GuardwireError | None) -> None:
        with self._changed:
            if self._over.is_set():
                return
            if self._protocol.summary is None:
                self._failure = failure or broken_contract("the server ended the stream without a summary")
            self._over.set()
            self._changed.notify_all()
        self._opened_or_over.set()
        self._requests.put(None)  # lets go of the thread in which grpc waits for requests
        self._span.end(self._failure, self._protocol)
