"""The open streams: admission, the way between caller and engine, timeouts.

Theory of operation. One `StreamSession` per stream couples a sans-I/O `Session` with its sequence in the engine. What
the caller sends is handled at once; what follows goes either to the device thread or into the session's queue of
updates, which the call's writer empties; verdicts that wait there together leave as one. A caller is only listened to
while its session wants input and its updates are being read, so neither queue can grow beyond its bound: gRPC's flow
control does the rest. (Verdicts that a call for many streams takes at once it must bound itself, and does.)
"""

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from guardwire_server.core.errors import Draining, EngineUnavailable, Overloaded
from guardwire_server.core.events import (
    DrainAnnounced,
    ExtendSequence,
    SequenceFailed,
    TimePassed,
    TruncateSequence,
)
from guardwire_server.core.observation import StreamObserver
from guardwire_server.core.ports import SessionLimits, TurnRenderer
from guardwire_server.core.session import Session
from guardwire_server.core.step_plan import Read
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.lag_samples import MAX_SAMPLES, LagSamples
from guardwire_server.engine.stream_engine import (
    CloseSequence,
    OpenSequence,
    SequenceMessage,
    SingleTokensJudged,
    StepEvent,
    StreamEngine,
    TokenStep,
)
from guardwire_server.engine.stream_session import OnVerdict, StreamSession

TICK_S = 0.5
"""How often sessions look at their deadlines, which are seconds to hours."""


@dataclass(frozen=True, slots=True)
class ManagerLimits:
    """`max_sessions` open at once; `max_queued_updates` wait for a caller before it is not listened to any more."""

    max_sessions: int
    max_queued_updates: int = 64


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
        self.lag_samples = LagSamples(MAX_SAMPLES)
        self._session_limits = session_limits
        self._sessions: dict[int, StreamSession] = {}
        self._probes: dict[int, asyncio.Future[None]] = {}
        self._seq_ids = itertools.count()
        self._thread: DeviceThread
        self._engine: StreamEngine
        self._is_draining = False
        self._cut_with: Draining | None = None
        self._told_of_cut: set[asyncio.Event] = set()
        self._closed = asyncio.Event()  # set whenever a stream is

    def connect(self, thread: DeviceThread, engine: StreamEngine) -> None:
        """Says where tokens go; once, before the first stream."""
        self._thread, self._engine = thread, engine

    @property
    def num_sessions(self) -> int:
        """Streams that are open."""
        return len(self._sessions)

    def open(
        self,
        observe: Callable[[int, str], StreamObserver] | None = None,
        *,
        on_change: Callable[[], None] | None = None,
        on_verdict: OnVerdict | None = None,
    ) -> StreamSession:
        """Admits a stream; use it as an async context manager, or close it.

        Args:
            observe: Makes the observer of the stream once it is admitted, from its sequence's id and its own.
            on_change: Called whenever there may be something to take from it, or room for more. For whoever uses
                `take_update` and `is_held` then, instead of `updates` and `ready_for_input`.
            on_verdict: Offered the verdicts on single tokens from which nothing else follows, beside `on_change`; what
                it takes is no update any more, and to bound it is its part.

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
        stream = StreamSession(self, session, seq_id, observe, on_change, on_verdict)
        self._sessions[seq_id] = stream
        return stream

    def close(self, seq_id: int) -> None:
        """Forgets a stream and all that is pending of it."""
        stream = self._sessions.pop(seq_id, None)
        if stream is not None:
            self.send(seq_id, CloseSequence())
            self._closed.set()
            stream.closed()

    def send(self, seq_id: int, command: ExtendSequence | TruncateSequence | CloseSequence) -> None:
        """Hands a command to the engine; a lost device tells every stream by itself."""
        try:  # noqa: SIM105 contextlib.suppress costs more than all else here
            self._thread.submit(self._engine, SequenceMessage(seq_id, command))
        except EngineUnavailable:
            pass

    def send_token(self, seq_id: int, token_id: int) -> None:
        """Hands one token of an answer to the engine, with those that came right before it in this round of the loop.

        A message for each would cost the device thread more than the token itself.
        """
        newest = self._thread.newest
        if isinstance(newest, TokenStep):
            newest.seq_ids.append(seq_id)
            newest.token_ids.append(token_id)
        else:
            self.send_step([seq_id], array("i", (token_id,)))

    def send_step(self, seq_ids: list[int], token_ids: "array[int]") -> None:
        """Hands tokens of answers to the engine, each of the sequence at its place: an `ExtendSequence` for each.

        Takes the two over.
        """
        try:  # noqa: SIM105 as above
            self._thread.submit(self._engine, TokenStep(seq_ids, token_ids))
        except EngineUnavailable:
            pass

    def take_events(self, events: Sequence[StepEvent]) -> None:
        """Takes a step's results; those of streams that are gone meanwhile are passed over."""
        for result in events:
            if isinstance(result, SingleTokensJudged):
                self._take_single_tokens(result)
                continue
            seq_id, event = result
            stream = self._sessions.get(seq_id)
            if stream is not None:
                stream.handle_result(event)
            elif (probe := self._probes.get(seq_id)) and not probe.done():
                if isinstance(event, SequenceFailed):
                    probe.set_exception(event.error)
                else:
                    probe.set_result(None)

    def _take_single_tokens(self, judged: SingleTokensJudged) -> None:
        """Takes the verdicts of a step on single tokens; nearly all of them are SAFE."""
        now_s, sessions, verdicts = self.now_s(), self._sessions, judged.verdicts
        for entry, (chunk, is_safe) in enumerate(zip(judged.chunks, verdicts.safe_marks(), strict=True)):
            stream = sessions.get(chunk.seq_id)
            if stream is not None and not (is_safe and stream.take_safe(chunk.start, verdicts, entry, now_s)):
                stream.handle_result(judged.event(entry))

    async def probe(self) -> None:
        """Judges one token of a sequence of its own: returns when the whole way through the device works.

        It is read as a prompt's end: what is read as an answer's token counts as a caller's.

        Raises:
            RequestError: When the step failed or the device is lost.
        """
        seq_id = next(self._seq_ids)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._probes[seq_id] = future
        try:
            for command in (OpenSequence(), ExtendSequence(array("i", (0,)), bytes((Read.QUERY,)))):
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
        self._cut_with = error = Draining("DRAINING", "the server has stopped", retry_after_s=1.0)
        for stream in tuple(self._sessions.values()):
            stream.handle(SequenceFailed(error))
        for event in self._told_of_cut:
            event.set()

    @contextlib.contextmanager
    def tells_of_cut(self, event: asyncio.Event) -> Iterator[None]:
        """Sets an event on `cut`, while in the block: for a call that may have no stream which would hear of it."""
        self._told_of_cut.add(event)
        try:
            yield
        finally:
            self._told_of_cut.remove(event)

    def require_not_cut(self) -> None:
        """Raises what `cut` has ended every stream with, if it has."""
        if self._cut_with:
            raise self._cut_with

    async def tick(self) -> None:
        """Lets the sessions look at their deadlines, until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            self.check_deadlines()

    def check_deadlines(self) -> None:
        """Lets every session look at its deadlines once."""
        for stream in tuple(self._sessions.values()):
            stream.handle(TimePassed())
