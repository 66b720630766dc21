"""The open streams: admission, the way between caller and engine, timeouts.

Theory of operation. One `StreamSession` per stream couples a sans-I/O `Session` with its sequence in the engine. What
the caller sends is handled at once; what follows goes either to the device thread or into the session's queue of
updates, which the call's writer empties; verdicts that wait there together leave as one. A caller is only listened to
while its session wants input and its updates are being read, so neither queue can grow beyond its bound: gRPC's flow
control does the rest.
"""

import asyncio
import contextlib
import itertools
import secrets
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from guardwire_server.core.errors import Draining, EngineUnavailable, Overloaded
from guardwire_server.core.events import (
    DrainAnnounced,
    EngineEvent,
    Event,
    ExtendSequence,
    OpenRequested,
    SequenceFailed,
    StreamEnded,
    TimePassed,
    TokenVerdicts,
    TruncateSequence,
    Update,
)
from guardwire_server.core.ports import SessionLimits, TurnRenderer, is_long
from guardwire_server.core.reports import join_reports
from guardwire_server.core.scheduler import Read
from guardwire_server.core.session import Session
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.faults import internal_error
from guardwire_server.engine.stream_engine import (
    CloseSequence,
    OpenSequence,
    SequenceEvent,
    SequenceMessage,
    StreamEngine,
)

TICK_S = 0.5
"""How often sessions look at their deadlines, which are seconds to hours."""

MAX_JOINED_TOKENS = 4096
"""How many tokens' verdicts leave as one update: 80 KB on the wire."""


@dataclass(frozen=True, slots=True)
class ManagerLimits:
    """`max_sessions` open at once; `max_queued_updates` wait for a caller before it is not listened to any more."""

    max_sessions: int
    max_queued_updates: int = 64


class StreamSession:
    """One open stream, for the duration of an `async with` or until `close`. Owner: the call. Thread: the event loop.

    Invariants: updates come in order and end exactly once; on leaving, its sequence is closed in the engine.
    """

    def __init__(
        self, manager: "SessionManager", session: Session, seq_id: int, on_change: Callable[[], None] | None
    ) -> None:
        self._manager = manager
        self._on_change = on_change
        self._session = session
        self._seq_id = seq_id
        self._updates: deque[Update] = deque()
        self._end: StreamEnded | None = None
        self._changed = asyncio.Event()
        self._may_send = asyncio.Event()
        self._may_send.set()
        self.session_id = secrets.token_hex(8)

    async def __aenter__(self) -> "StreamSession":
        """Nothing is left to do: the manager has opened it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the sequence, whatever happened."""
        self.close()

    def close(self) -> None:
        """Forgets the stream and all that is pending of it."""
        self._manager.close(self._seq_id)

    @property
    def ended(self) -> StreamEnded | None:
        """How the stream ended, once it has; updates may still wait."""
        return self._end

    @property
    def is_held(self) -> bool:
        """Whether the caller's next message must wait: for verdicts, or until the caller has read some."""
        return self._end is None and not self._may_send.is_set()

    def handle(self, event: Event) -> None:
        """Takes an event and passes on what follows from it."""
        for output in self._session.handle(event, self._manager.now_s()):
            if isinstance(output, ExtendSequence | TruncateSequence):
                self._manager.send(self._seq_id, output)
            elif isinstance(output, StreamEnded):
                self._end = output
            else:
                self._updates.append(output)
        self._announce_change()

    def handle_result(self, event: EngineEvent) -> None:
        """Takes a result of a step. A fault of ours here costs this stream; the others of the step go on."""
        try:
            self.handle(event)
        except Exception:
            self._updates.clear()
            self._end = StreamEnded(internal_error("a result could not be handled"))
            self._announce_change()

    async def handle_open(self, event: OpenRequested) -> None:
        """Takes the first message; a long conversation is tokenised beside the event loop, so that no stream waits."""
        if isinstance(event.prompt, tuple) and is_long(event.prompt):
            rendered = await asyncio.to_thread(self._manager.renderer.prompt, event.prompt, event.thinking)
            event = replace(event, prompt=rendered)
        self.handle(event)

    async def ready_for_input(self) -> None:
        """Waits until the caller's next message should be taken."""
        await self._may_send.wait()

    async def updates(self) -> AsyncIterator[Update]:
        """What to tell the caller, until the stream ends.

        Raises:
            RequestError: When the stream ends with an error; after every update that came before it.
        """
        while True:
            while (update := self.take_update()) is not None:
                yield update
            if self._end is not None:
                break
            self._changed.clear()
            await self._changed.wait()
        if self._end.error is not None:
            raise self._end.error

    def take_update(self) -> Update | None:
        """The next thing to tell the caller; None if nothing waits. Verdicts on consecutive tokens come together."""
        if not self._updates:
            return None
        update = self._updates.popleft()
        if isinstance(update, TokenVerdicts):
            update = self._with_following(update)
        self._update_flow()
        return update

    def _with_following(self, first: TokenVerdicts) -> TokenVerdicts:
        reports, next_index = [first], first.start_index + len(first.verdicts)
        while self._updates and next_index - first.start_index < MAX_JOINED_TOKENS:
            following = self._updates[0]
            if not isinstance(following, TokenVerdicts) or following.start_index != next_index:
                break
            reports.append(following)
            next_index += len(following.verdicts)
            self._updates.popleft()
        return join_reports(reports) if len(reports) > 1 else first

    def _announce_change(self) -> None:
        self._update_flow()
        self._changed.set()
        if self._on_change:
            self._on_change()

    def _update_flow(self) -> None:
        is_read = len(self._updates) < self._manager.limits.max_queued_updates
        if self._end is None and self._session.wants_input and is_read:
            self._may_send.set()
        else:
            self._may_send.clear()


class SessionManager:
    """Owner of the open streams. Thread: the event loop.

    Invariant: a stream is here exactly while its call lasts, and its sequence is in the engine or on its way there.
    """

    def __init__(
        self,
        renderer: TurnRenderer,
        limits: ManagerLimits,
        session_limits: SessionLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.now_s = clock
        self.renderer = renderer
        self._session_limits = session_limits
        self._sessions: dict[int, StreamSession] = {}
        self._probes: dict[int, asyncio.Future[None]] = {}
        self._seq_ids = itertools.count()
        self._thread: DeviceThread
        self._engine: StreamEngine
        self._is_draining = False
        self._closed = asyncio.Event()  # set whenever a stream is

    def connect(self, thread: DeviceThread, engine: StreamEngine) -> None:
        """Says where tokens go; once, before the first stream."""
        self._thread, self._engine = thread, engine

    @property
    def num_sessions(self) -> int:
        """Streams that are open."""
        return len(self._sessions)

    def open(self, on_change: Callable[[], None] | None = None) -> StreamSession:
        """Admits a stream; use it as an async context manager, or close it.

        Args:
            on_change: Called whenever there may be something to take from it, or room for more.

        Raises:
            Overloaded: At `max_sessions`.
            Draining: When the server is stopping.
            EngineUnavailable: When the device is lost.
        """
        if self._is_draining:
            raise Draining("DRAINING", "the server is stopping", retry_after_s=1.0)
        if self.num_sessions >= self.limits.max_sessions:
            raise Overloaded(
                "TOO_MANY_SESSIONS", f"{self.limits.max_sessions} streams are open, the limit", retry_after_s=1.0
            )
        seq_id = next(self._seq_ids)
        session = Session(self._session_limits, self.renderer, self.now_s())
        self._thread.submit(self._engine, SequenceMessage(seq_id, OpenSequence()))
        stream = self._sessions[seq_id] = StreamSession(self, session, seq_id, on_change)
        return stream

    def close(self, seq_id: int) -> None:
        """Forgets a stream and all that is pending of it."""
        if self._sessions.pop(seq_id, None) is not None:
            self.send(seq_id, CloseSequence())
            self._closed.set()

    def send(self, seq_id: int, command: ExtendSequence | TruncateSequence | CloseSequence) -> None:
        """Hands a command to the engine; a lost device tells every stream by itself."""
        with contextlib.suppress(EngineUnavailable):
            self._thread.submit(self._engine, SequenceMessage(seq_id, command))

    def take_events(self, events: Sequence[SequenceEvent]) -> None:
        """Takes a step's results; those of streams that are gone meanwhile are passed over."""
        for seq_id, event in events:
            stream = self._sessions.get(seq_id)
            if stream is not None:
                stream.handle_result(event)
            elif (probe := self._probes.get(seq_id)) and not probe.done():
                if isinstance(event, SequenceFailed):
                    probe.set_exception(event.error)
                else:
                    probe.set_result(None)

    async def probe(self) -> None:
        """Judges one token of a sequence of its own: returns when the whole way through the device works.

        Raises:
            RequestError: When the step failed or the device is lost.
        """
        seq_id = next(self._seq_ids)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._probes[seq_id] = future
        try:
            for command in (OpenSequence(), ExtendSequence(array("i", (0,)), bytes((Read.RESPONSE,)))):
                self._thread.submit(self._engine, SequenceMessage(seq_id, command))
            await future
        finally:
            del self._probes[seq_id]
            self.send(seq_id, CloseSequence())

    def drain(self, timeout_s: float) -> None:
        """Admits nothing more and tells every open stream that it will be cut in `timeout_s` seconds."""
        self._is_draining = True
        for stream in tuple(self._sessions.values()):
            stream.handle(DrainAnnounced(timeout_s))

    async def emptied(self) -> None:
        """Waits until no stream is open; after `drain` that is for good."""
        while self._sessions:
            self._closed.clear()
            await self._closed.wait()

    def cut(self) -> None:
        """Ends every stream that is still open: its time after `drain` is over."""
        error = Draining("DRAINING", "the server has stopped", retry_after_s=1.0)
        for stream in tuple(self._sessions.values()):
            stream.handle(SequenceFailed(error))

    async def tick(self) -> None:
        """Lets the sessions look at their deadlines, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.check_deadlines()

    def check_deadlines(self) -> None:
        """Lets every session look at its deadlines once."""
        for stream in tuple(self._sessions.values()):
            stream.handle(TimePassed())
