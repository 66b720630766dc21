"""What judges: the models' engines on their device thread, with the streams and calls that they serve."""

import asyncio
import contextlib
from collections.abc import Sequence

from guardwire_server.access.metering import MeteredConversations, MeteredRenderer
from guardwire_server.config import ServerConfig
from guardwire_server.core.observation import EngineLoad, StepObserver
from guardwire_server.core.ports import SessionLimits
from guardwire_server.engine.classifier import Classifier
from guardwire_server.engine.device_thread import DeviceThread, StepEngine
from guardwire_server.engine.gen_engine import GenEngine
from guardwire_server.engine.session_manager import ManagerLimits, SessionManager
from guardwire_server.engine.stream_engine import StreamEngine
from guardwire_server.model.loading import GenModel, StreamModel
from guardwire_server.served_models import Models


class Judging:
    """The device thread and everything that it works for. Owner: the server. Thread: the event loop.

    `manager` or `classifier` is None where there is no such model.
    """

    def __init__(self, config: ServerConfig, models: Models, observer: StepObserver | None) -> None:
        self.manager: SessionManager | None = None
        self.classifier: Classifier | None = None
        self._stream_engine: StreamEngine | None = None
        self._gen_engine: GenEngine | None = None
        if models.stream:
            self.manager = _session_manager(config, models.stream)
            self._stream_engine = StreamEngine(
                models.stream.scheduler, models.stream.backend, self.manager.take_events, observer
            )
        if models.gen:
            self.classifier = _classifier(config, models.gen)
            self._gen_engine = GenEngine(
                models.gen.scheduler, models.gen.backend, self.classifier.take_results, observer=observer
            )
        engines: Sequence[StepEngine | None] = (self._stream_engine, self._gen_engine)
        self.thread = DeviceThread([engine for engine in engines if engine])
        if self.manager and self._stream_engine:
            self.manager.connect(self.thread, self._stream_engine)
        if self.classifier and self._gen_engine:
            self.classifier.connect(self.thread, self._gen_engine)

    @property
    def stream_load(self) -> EngineLoad | None:
        """The load of the stream model; None if there is none. From any thread."""
        return self._stream_engine.load if self._stream_engine else None

    @property
    def gen_load(self) -> EngineLoad | None:
        """The load of the generative model; None if there is none. From any thread."""
        return self._gen_engine.load if self._gen_engine else None

    def drain(self, grace_s: float) -> None:
        """Takes nothing new, and tells every open stream how long it has."""
        if self.classifier:
            self.classifier.is_draining = True
        if self.manager:
            self.manager.drain(grace_s)

    async def emptied(self, grace_s: float) -> None:
        """Waits until nothing is open, but not beyond the grace period."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                if self.manager:
                    await self.manager.emptied()
                if self.classifier:
                    await self.classifier.emptied()

    def cut(self) -> None:
        """Ends what is still open."""
        if self.manager:
            self.manager.cut()
        if self.classifier:
            self.classifier.cut()


def _session_manager(config: ServerConfig, model: StreamModel) -> SessionManager:
    return SessionManager(
        MeteredRenderer(model.renderer) if config.access_file else model.renderer,
        ManagerLimits(config.max_sessions),
        SessionLimits(
            max_context_tokens=model.max_context_tokens,
            max_pending_tokens=config.max_pending_tokens,
            idle_timeout_s=config.idle_timeout_s,
            max_lifetime_s=config.max_lifetime_s,
        ),
    )


def _classifier(config: ServerConfig, model: GenModel) -> Classifier:
    return Classifier(
        MeteredConversations(model.renderer) if config.access_file else model.renderer,
        max_calls=config.max_classify_calls,
        max_context_tokens=model.max_context_tokens,
    )
