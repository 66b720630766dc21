"""One open stream between its call and the engine: what its caller is told, and when its caller is listened to."""

import asyncio
import secrets
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from guardwire_server.core.events import (
    EngineEvent,
    Event,
    ExtendSequence,
    OpenRequested,
    RollbackRequested,
    StreamEnded,
    TextPushed,
    TokensPushed,
    TokenVerdicts,
    TruncateSequence,
    Update,
)
from guardwire_server.core.observation import StreamObserver
from guardwire_server.core.ports import is_long
from guardwire_server.core.reports import join_reports
from guardwire_server.core.session import Session
from guardwire_server.core.transitions import State
from guardwire_server.core.verdict import VerdictArrays
from guardwire_server.engine.faults import internal_error
from guardwire_server.engine.lag_samples import FollowedToken

if TYPE_CHECKING:
    from guardwire_server.engine.session_manager import SessionManager

MAX_JOINED_TOKENS = 4096
"""How many tokens' verdicts leave as one update: 80 KB on the wire."""

OnVerdict = Callable[[int, VerdictArrays, int], bool]
"""Offered the verdict on a token that is told next: the token's index, and which entry of which verdicts it is.

True: it is told; False: it must wait as an update.
"""


class StreamSession:
    """One open stream, for the duration of an `async with` or until `close`. Owner: the call. Thread: the event loop.

    Invariants: updates come in order and end exactly once; on leaving, its sequence is closed in the engine. `listens`
    is whether the caller's next message should be taken; never again once the stream has ended.
    """

    def __init__(
        self,
        manager: "SessionManager",
        session: Session,
        seq_id: int,
        observe: Callable[[int, str], StreamObserver] | None,
        on_change: Callable[[], None] | None,
        on_verdict: OnVerdict | None,
    ) -> None:
        self._manager = manager
        self.session_id = secrets.token_hex(8)
        self._observer = observe(seq_id, self.session_id) if observe else None
        self._followed = FollowedToken(manager.lag_samples, self._observer.lagged) if self._observer else None
        self._on_change = on_change
        self._on_verdict = on_verdict
        self._session = session
        self.seq_id = seq_id
        self._max_queued_updates = manager.limits.max_queued_updates
        self._updates: deque[Update] = deque()
        self._end: StreamEnded | None = None
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None  # an Event makes a system call for every wait
        self.listens = True
        self._listens_again = asyncio.Event()

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
        self._manager.close(self.seq_id)

    def closed(self) -> None:
        """The manager has forgotten it."""
        if self._followed is not None:
            self._followed.lose()
        if self._observer is not None:
            self._observer.closed(self._end, self._session.num_tokens)

    @property
    def ended(self) -> StreamEnded | None:
        """How the stream ended, once it has; updates may still wait."""
        return self._end

    @property
    def has_updates(self) -> bool:
        """Whether an update waits."""
        return bool(self._updates)

    @property
    def hears(self) -> bool:
        """Whether what the caller says still matters: the stream has not ended, and refused nothing."""
        return self._end is None and (self._session.state is not State.CLOSING or self._session.wants_input)

    @property
    def is_held(self) -> bool:
        """Whether the caller's next message must wait: for verdicts, or until the caller has read some."""
        return self._end is None and not self.listens

    def handle(self, event: Event) -> None:
        """Takes an event and passes on what follows from it."""
        now_s, num_tokens = self._manager.now_s(), self._session.num_tokens
        for output in self._session.handle(event, now_s):
            if isinstance(output, (ExtendSequence, TruncateSequence)):
                self._manager.send(self.seq_id, output)
            elif isinstance(output, StreamEnded):
                self._end = output
            else:
                self._updates.append(output)
                if self._observer is not None and not isinstance(output, TokenVerdicts):
                    self._observer.told(output)
        if self._followed is not None:
            if isinstance(event, RollbackRequested):
                self._followed.lose()
            elif isinstance(event, (TokensPushed, TextPushed)) and self._session.num_tokens > num_tokens:
                self._follow(now_s)
        if self._update_flow() or self._updates or self._end is not None:
            self._announce_change()

    def push(self, token_id: int) -> None:
        """Takes the answer's next token and passes on what follows from it."""
        if self.push_token(token_id, self._manager.now_s()):
            self._manager.send_token(self.seq_id, token_id)
        else:
            self.handle(TokensPushed(array("i", (token_id,))))

    def push_token(self, token_id: int, now_s: float) -> bool:
        """The short way of one token, see `Session.push_token`; if it is taken, sending it to the engine is left."""
        is_taken = self._session.push_token(token_id, now_s)
        if is_taken:
            if not self._session.has_room:  # else who was listened to still is
                self._update_flow()
            if self._followed is not None and self._manager.lag_samples.has_room:
                self._follow(now_s)
        return is_taken

    def handle_result(self, event: EngineEvent) -> None:
        """Takes a result of a step. A fault of ours here costs this stream; the others of the step go on."""
        try:
            self.handle(event)
        except Exception:
            self._fail()

    def take_safe(self, position: int, verdicts: VerdictArrays, entry: int, now_s: float) -> bool:
        """The short way of one token judged, by the verdict at `entry`, as SAFE: see `Session.take_safe`.

        False if nothing was done; then it must come as a result.
        """
        try:
            index = self._session.take_safe(position, now_s)
            if index is not None:
                self._report_safe(index, verdicts, entry)
        except Exception:
            self._fail()
            return True
        return index is not None

    def _report_safe(self, index: int, verdicts: VerdictArrays, entry: int) -> None:
        """Tells the caller of a SAFE verdict, from which nothing else follows."""
        is_next = not self._updates and (self._followed is None or not self._followed.is_pending)
        if self._on_verdict is None or not is_next or not self._on_verdict(index, verdicts, entry):
            self._updates.append(TokenVerdicts(index, verdicts.slice(entry, entry + 1)))
            self._announce_change()
        # A verdict leaves less to wait for, so who listens goes on unless this update was one too many.
        if (not self.listens or len(self._updates) >= self._max_queued_updates) and self._update_flow():
            self._announce_change()

    def _fail(self) -> None:
        """Ends the stream by a fault of ours."""
        self._updates.clear()
        self._end = StreamEnded(internal_error("a result could not be handled"))
        self._update_flow()
        self._announce_change()

    async def handle_open(self, event: OpenRequested) -> None:
        """Takes the first message; a long conversation is tokenised beside the event loop, so that no stream waits."""
        if isinstance(event.prompt, tuple) and is_long(event.prompt):
            rendered = await asyncio.to_thread(self._manager.renderer.prompt, event.prompt, event.thinking)
            event = replace(event, prompt=rendered)
        self.handle(event)

    async def ready_for_input(self) -> None:
        """Waits until the caller's next message should be taken."""
        while not self.listens:
            self._listens_again.clear()
            await self._listens_again.wait()

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
            self._reader = self._loop.create_future()
            await self._reader
        if self._end.error is not None:
            raise self._end.error

    def take_update(self) -> Update | None:
        """The next thing to tell the caller; None if nothing waits. Verdicts on consecutive tokens come together."""
        if not self._updates:
            return None
        update = self._updates.popleft()
        if self._updates and isinstance(update, TokenVerdicts):
            update = self._with_following(update)
        if self._followed is not None and isinstance(update, TokenVerdicts):
            self._followed.answered(update.start_index + len(update.verdicts), self._manager.now_s)
        if not self.listens:
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

    def _follow(self, now_s: float) -> None:
        """Follows the newest token, pushed now, if its verdict will be told."""
        if self._followed is not None and self._session.tells_all:
            self._followed.follow(self._session.num_tokens - 1, now_s)

    def _announce_change(self) -> None:
        if self._on_change:
            self._on_change()  # whoever is called back waits for nothing else
        elif self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _update_flow(self) -> bool:
        """Listens to the caller or does not; returns whether it does again."""
        listened = self.listens
        is_read = len(self._updates) < self._max_queued_updates
        self.listens = is_read and self._end is None and self._session.wants_input
        listens_again = self.listens and not listened
        if listens_again:
            self._listens_again.set()
        return listens_again
