"""A session manager above a stepped device thread, and callers that read what they are told."""

import asyncio

from guardwire_server.core.errors import RequestError
from guardwire_server.core.events import Update
from guardwire_server.core.ports import SessionLimits
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.engine.session_manager import ManagerLimits, SessionManager
from guardwire_server.engine.stream_engine import StreamEngine
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import FakeRenderer
from tests.engine.fakes import FakeStreamBackend, ManualClock, SteppedThread, scheduler

SESSION_LIMITS = SessionLimits(max_context_tokens=128, max_pending_tokens=16, idle_timeout_s=10.0, max_lifetime_s=100.0)
MANAGER_LIMITS = ManagerLimits(max_sessions=4, max_queued_updates=8)


class Server:
    """All that serves streams but the model; `thread` does nothing by itself."""

    def __init__(
        self,
        *,
        manager_limits: ManagerLimits = MANAGER_LIMITS,
        session_limits: SessionLimits = SESSION_LIMITS,
        scheduler_limits: SchedulerLimits | None = None,
        num_roots: int = 4,
    ) -> None:
        self.clock = ManualClock()
        self.manager = SessionManager(FakeRenderer(), manager_limits, session_limits, self.clock)
        self.backend = FakeStreamBackend(num_roots * session_limits.max_context_tokens)
        self.scheduler = scheduler(num_roots, session_limits.max_context_tokens, scheduler_limits)
        self.engine = StreamEngine(self.scheduler, self.backend, self.manager.take_events)
        self.thread = SteppedThread(self.engine)
        self.manager.connect(self.thread, self.engine)


class Reader:
    """A task that reads a stream's updates, unless it is told to pause; `error` is what the stream ended with."""

    def __init__(self, stream: StreamSession) -> None:
        self.updates: list[Update] = []
        self.error: RequestError | None = None
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: StreamSession) -> None:
        try:
            async for update in stream.updates():
                self.updates.append(update)
                await self.may_read.wait()
        except RequestError as error:
            self.error = error


async def is_ready(stream: StreamSession) -> bool:
    """Whether the caller's next message would be taken now."""
    waiting = asyncio.create_task(stream.ready_for_input())
    await asyncio.sleep(0)
    if waiting.done():
        return True
    waiting.cancel()
    await asyncio.wait([waiting])
    return False
