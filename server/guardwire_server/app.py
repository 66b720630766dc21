"""Puts the server together: the only place that knows all parts."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import torch

from guardwire_server import __version__, demo
from guardwire_server.config import ServerConfig
from guardwire_server.core.errors import StartupError
from guardwire_server.core.policy import BUILT_IN_POLICIES
from guardwire_server.core.ports import SessionLimits
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.core.verdict import Category
from guardwire_server.engine.classifier import Classifier
from guardwire_server.engine.device_thread import DeviceThread, EngineLoad, StepEngine
from guardwire_server.engine.gen_engine import GenEngine
from guardwire_server.engine.session_manager import ManagerLimits, SessionManager
from guardwire_server.engine.stream_engine import StreamEngine
from guardwire_server.model.checkpoint import CheckpointKind
from guardwire_server.model.checkpoint_device import choose_device_and_dtype, choose_kv_dtype
from guardwire_server.model.checkpoint_weights import LoadProgress
from guardwire_server.model.loading import (
    GenModel,
    LoadedModel,
    LoadOptions,
    StreamModel,
    load_gen_model,
    load_stream_model,
    open_as,
)
from guardwire_server.model.native_kernels import load_native_kernels
from guardwire_server.rpc.catalogue import Catalogue, RequestLimits, ServedModel
from guardwire_server.rpc.health import HealthMonitor
from guardwire_server.rpc.server import SERVICES, RpcServer
from guardwire_server.rpc.service import ModerationService

logger = logging.getLogger(__name__)

MAX_NUM_BATCHED_TOKENS = {"cpu": 256, "cuda": 4096}
"""Token budget of a step by device: a CPU computes every token, a GPU's step costs the same up to hundreds."""

MIN_STALL_TIMEOUT_S = 4.0
STALL_STEPS = 10
"""A step counts as stalled after 10 times the longest one, and never before 4 s: an orchestrator should restart a
server within seconds, but not one that is only slow."""


CUT_S = 1.0
"""How long the last calls have to be told how they ended, before their connections are closed."""


@dataclass(frozen=True, slots=True)
class Models:
    """What the server judges with; at least one is there."""

    stream: StreamModel | None
    gen: GenModel | None


def load_models(config: ServerConfig, on_progress: Callable[[str], LoadProgress] | None = None) -> Models:
    """Loads the configured models.

    Args:
        config: All settings.
        on_progress: Gives, for a model's name, what is called with the parameters loaded and in all.

    Raises:
        StartupError: If a checkpoint or a setting is not as it must be.
    """
    device, dtype = choose_device_and_dtype(config.device, config.dtype)
    kernels = load_native_kernels() if config.native_kernels and device.type == "cpu" else None
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.stream_model == config.gen_model == "none":
        raise StartupError("stream_model, gen_model: both are none, so there is nothing to serve")

    def options(kind: CheckpointKind, max_sequences: int) -> LoadOptions:
        # Gen's answer must be that of its own dtype to the letter, and it reads its keys a few times only.
        is_free = kernels is not None and kind is CheckpointKind.STREAM
        max_num_batched_tokens = config.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS[device.type]
        return LoadOptions(
            device=device,
            dtype=dtype,
            kv_dtype=choose_kv_dtype(config.kv_dtype, config.dtype, dtype, is_converted_in_kernel=is_free),
            max_sequences=max_sequences,
            step_limits=SchedulerLimits(
                max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=config.max_num_seqs
            ),
            max_context_tokens=config.max_context_tokens,
            kv_memory_gib=config.kv_memory_gib,
            kernels=kernels,
            on_progress=on_progress,
        )

    stream = gen = None
    if config.stream_model != "none":
        path = str(demo.stream_checkpoint_directory()) if config.stream_model == "demo" else config.stream_model
        checkpoint = open_as(CheckpointKind.STREAM, path, "stream_model")
        stream = load_stream_model(checkpoint, options(CheckpointKind.STREAM, config.max_sessions))
    if config.gen_model != "none":
        path = str(demo.gen_checkpoint_directory()) if config.gen_model == "demo" else config.gen_model
        checkpoint = open_as(CheckpointKind.GEN, path, "gen_model")
        gen = load_gen_model(checkpoint, options(CheckpointKind.GEN, config.max_classify_calls))
    return Models(stream, gen)


class Server:
    """The whole server. Owner of all its parts; `start` and `stop` are called once each, on one event loop."""

    def __init__(self, config: ServerConfig, models: Models) -> None:
        """Wires everything; quick."""
        self._config = config
        self._manager: SessionManager | None = None
        self._classifier: Classifier | None = None
        self._stream_engine: StreamEngine | None = None
        self._tasks: list[asyncio.Task[None]] = []
        engines: list[StepEngine] = []
        gen_engine = None
        if models.stream:
            self._manager = _session_manager(config, models.stream)
            self._stream_engine = StreamEngine(
                models.stream.scheduler, models.stream.backend, self._manager.take_events
            )
            engines.append(self._stream_engine)
        if models.gen:
            self._classifier = Classifier(
                models.gen.renderer,
                max_calls=config.max_classify_calls,
                max_context_tokens=models.gen.max_context_tokens,
            )
            gen_engine = GenEngine(models.gen.scheduler, models.gen.backend, self._classifier.take_results)
            engines.append(gen_engine)
        self._thread = DeviceThread(engines)
        if self._manager and self._stream_engine:
            self._manager.connect(self._thread, self._stream_engine)
        if self._classifier and gen_engine:
            self._classifier.connect(self._thread, gen_engine)
        self._health = self._health_monitor(models)
        service = ModerationService(
            _catalogue(config, models),
            manager=self._manager,
            classifier=self._classifier,
            stream_load=lambda: self._stream_engine.load if self._stream_engine else EngineLoad(),
        )
        self._rpc = RpcServer(service, self._health, has_reflection=config.reflection)

    async def start(self) -> str:
        """Starts everything; returns the bound address.

        Raises:
            StartupError: If the address cannot be bound.
        """
        self._thread.start()
        address = await self._rpc.start(self._config.listen)
        await self._health.check()
        self._tasks.append(asyncio.create_task(self._health.run()))
        if self._manager:
            self._tasks.append(asyncio.create_task(self._manager.tick()))
        return address

    async def stop(self) -> None:
        """Drains: NOT_SERVING, a delay for load balancers, word to every stream, the grace period, the end."""
        self._health.shut_down()
        await asyncio.sleep(self._config.drain_delay_s)
        if self._classifier:
            self._classifier.is_draining = True
        if self._manager:
            self._manager.drain(self._config.grace_s)
        await self._wait_for_callers()
        if self._manager:
            self._manager.cut()
        if self._classifier:
            self._classifier.cut()
        self._health.servicer.end_watches()
        await self._rpc.stop(CUT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not await self._thread.stop(timeout_s=MIN_STALL_TIMEOUT_S):
            logger.error("the device thread did not end")

    async def _wait_for_callers(self) -> None:
        """Waits until nothing is open, but not beyond the grace period.

        Until then new calls are still taken, to be refused with UNAVAILABLE and when to try again: gRPC's own refusal
        in this state can be CANCELLED, which no caller retries.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.grace_s):
                if self._manager:
                    await self._manager.emptied()
                if self._classifier:
                    await self._classifier.emptied()

    def _health_monitor(self, models: Models) -> HealthMonitor:
        steps_s = [model.longest_step_s for model in (models.stream, models.gen) if model]
        return HealthMonitor(
            SERVICES,
            self._thread,
            self._manager.probe if self._manager else None,
            stall_timeout_s=self._config.stall_timeout_s or max(MIN_STALL_TIMEOUT_S, STALL_STEPS * max(steps_s)),
        )


@contextlib.asynccontextmanager
async def local_server(
    config: ServerConfig, on_progress: Callable[[str], LoadProgress] | None = None
) -> AsyncIterator[str]:
    """Runs a server inside this process for the length of the block; gives its address."""
    server = Server(config, load_models(config, on_progress))
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


def _session_manager(config: ServerConfig, model: StreamModel) -> SessionManager:
    return SessionManager(
        model.renderer,
        ManagerLimits(config.max_sessions),
        SessionLimits(
            max_context_tokens=model.max_context_tokens,
            max_pending_tokens=config.max_pending_tokens,
            idle_timeout_s=config.idle_timeout_s,
            max_lifetime_s=config.max_lifetime_s,
        ),
    )


def _catalogue(config: ServerConfig, models: Models) -> Catalogue:
    stream_model = gen_model = None
    if models.stream:
        labels = models.stream.checkpoint.labels
        assert labels is not None  # every stream checkpoint has them
        stream_model = _served(models.stream, labels.query.categories, labels.response.categories)
    if models.gen:
        answer_categories = tuple(category for category in Category if category is not Category.JAILBREAK)
        gen_model = _served(models.gen, tuple(Category), answer_categories)
    return Catalogue(
        version=__version__,
        stream_model=stream_model,
        gen_model=gen_model,
        policies={policy.name: policy for policy in BUILT_IN_POLICIES},
        limits=RequestLimits(
            max_sessions=config.max_sessions,
            max_classify_calls=config.max_classify_calls,
            max_tokens_per_message=config.max_tokens_per_message,
            max_message_bytes=config.max_message_bytes,
            max_messages=config.max_messages,
            idle_timeout_s=config.idle_timeout_s,
            max_lifetime_s=config.max_lifetime_s,
            write_timeout_s=config.write_timeout_s,
        ),
    )


def _served(
    model: LoadedModel, prompt_categories: tuple[Category, ...], response_categories: tuple[Category, ...]
) -> ServedModel:
    return ServedModel(
        name=model.checkpoint.name,
        revision=model.checkpoint.revision,
        tokenizer_fingerprint=model.tokenizer.fingerprint,
        tokenizer_json=model.tokenizer.json_bytes,
        vocabulary_size=model.checkpoint.vocabulary_size,
        max_context_tokens=model.max_context_tokens,
        prompt_categories=tuple(sorted(prompt_categories)),
        response_categories=tuple(sorted(response_categories)),
        dtype=model.dtype_name,
        device=model.device_name,
        is_demo=model.checkpoint.is_demo,
    )
