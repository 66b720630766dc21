"""A whole server in this process, on a port of its own, with a gate before each model's steps."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, Self

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.app import Server
from guardwire_server.config import ServerConfig
from guardwire_server.core.step_plan import StepPlan
from guardwire_server.served_models import Models, load_models
from guardwire_server.telemetry.server import ServerTelemetry
from tests.rpc.stream_call import WAIT_S, Failure, StreamCall


class StepGate:
    """Stands before a backend's steps: counts them, holds them, lets them fail.

    The device thread goes through it; everything else is called on the event loop.
    """

    def __init__(self, step: Callable[[StepPlan], Any]) -> None:
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()
        self._open.set()
        self._arrived = asyncio.Event()
        self._faults: deque[BaseException | None] = deque()
        self.num_steps = 0

    def __call__(self, plan: StepPlan) -> Any:  # noqa: ANN401 what the backend returns
        self.num_steps += 1
        if not self._open.is_set():
            self._loop.call_soon_threadsafe(self._arrived.set)
            assert self._open.wait(WAIT_S), "nobody released the gate"
        fault = self._faults.popleft() if self._faults else None
        if fault:
            raise fault
        return self._step(plan)

    def hold(self) -> None:
        """The next step waits at the gate."""
        self._arrived.clear()
        self._open.clear()

    async def arrival(self) -> None:
        """Waits until a step stands at the closed gate."""
        await asyncio.wait_for(self._arrived.wait(), WAIT_S)

    def release(self) -> None:
        self._open.set()

    def substitute(self, step: Callable[[StepPlan], Any]) -> None:
        """Takes `step` for the model's own from now on."""
        self._step = step

    def fail(self, num_steps: int = 1, *, after: int = 0, fault: type[BaseException] = RuntimeError) -> None:
        """After so many good steps the next ones raise; call it between steps or while one is held."""
        self._faults += [None] * after
        self._faults += [fault("the device is on fire") for _ in range(num_steps)]


class RunningServer:
    """Owner of the server, its channel and its gates, for the duration of an `async with`."""

    def __init__(self, config: ServerConfig, models: Models, telemetry: ServerTelemetry | None = None) -> None:
        self.config = config
        self.models = models
        self.gates: list[StepGate] = []
        self.num_messages = 0
        for model in (models.stream, models.gen):
            if model:
                gate = StepGate(model.backend.step)
                self.gates.append(gate)
                model.backend.step = gate  # type: ignore[method-assign]
        self._server = Server(config, models, telemetry)
        self._is_stopped = False
        self.address: str
        self.channel: grpc.aio.Channel
        self.stub: pb_grpc.ModerationServiceAsyncStub

    async def __aenter__(self) -> Self:
        self.address = await self._server.start()
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = pb_grpc.ModerationServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        for gate in self.gates:
            gate.release()
        await self.channel.close(None)
        await self.stop()
        for model in (self.models.stream, self.models.gen):
            if model:
                del model.backend.step

    async def stop(self) -> None:
        """Stops the server as SIGTERM does; once is enough."""
        if not self._is_stopped:
            self._is_stopped = True
            await self._server.stop()

    @property
    def health_address(self) -> str:
        """Where it serves health alone."""
        assert self._server.health_address, "health_listen is not set"
        return self._server.health_address

    @property
    def stream_gate(self) -> StepGate:
        assert self.models.stream
        return self.gates[0]

    @property
    def gen_gate(self) -> StepGate:
        assert self.models.gen
        return self.gates[-1]

    @property
    def num_sequences(self) -> int:
        """Sequences in the schedulers of both models."""
        models = (self.models.stream, self.models.gen)
        return sum(model.scheduler.num_sequences for model in models if model)

    def stream(self, timeout_s: float | None = None) -> StreamCall:
        """A new ModerateStream call."""
        return StreamCall(self.stub.ModerateStream(timeout=timeout_s))

    async def info(self) -> pb.GetServerInfoResponse:
        return await self.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=WAIT_S)

    async def classify_failure(self, request: pb.ClassifyRequest, timeout_s: float = WAIT_S) -> Failure:
        """How a Classify call fails."""
        return await failure_of(self.stub.Classify(request, timeout=timeout_s))

    @contextlib.asynccontextmanager
    async def taking(self, num_messages: int) -> AsyncIterator[None]:
        """Waits, at its end, until the server has handled so many stream messages more than at its beginning."""
        expected = self.num_messages + num_messages
        yield
        async with asyncio.timeout(WAIT_S):
            while self.num_messages < expected:
                await self.info()

    async def counts(self, *, num_sessions: int = 0, num_calls: int = 0) -> None:
        """Waits until the server says that so many streams and calls are open.

        What a caller abandons, the server notices soon, not at once.
        """
        async with asyncio.timeout(WAIT_S):
            while True:
                load = (await self.info()).load
                if (load.num_sessions, load.num_classify_calls) == (num_sessions, num_calls):
                    return

    async def settled(self, *, num_sessions: int = 0) -> None:
        """Waits until so many streams are open, no calls, and the engines have not a sequence more either."""
        await self.counts(num_sessions=num_sessions)
        async with asyncio.timeout(WAIT_S):
            while self.num_sequences != num_sessions:
                await self.info()


class LoadedModels:
    """Lends models to one server after another, which saves loading them; those that a test has spoilt it drops."""

    def __init__(self) -> None:
        self._models: dict[ServerConfig, Models] = {}

    def take(self, config: ServerConfig) -> Models:
        return self._models.pop(_loading_settings(config), None) or load_models(config)

    def give_back(self, server: RunningServer) -> None:
        """Takes the models of a server that has stopped."""
        models = [model for model in (server.models.stream, server.models.gen) if model]
        if all(model.scheduler.num_sequences == 0 for model in models):
            self._models[_loading_settings(server.config)] = server.models


def _loading_settings(config: ServerConfig) -> ServerConfig:
    """The settings that models are loaded by, all others as they are by default."""
    names = (
        "stream_model",
        "gen_model",
        "max_sessions",
        "max_classify_calls",
        "max_num_batched_tokens",
        "max_context_tokens",
    )
    return ServerConfig(**{name: getattr(config, name) for name in names})


class StartServer(Protocol):
    """Starts a server with settings that differ from `make_config`'s; it is stopped when the test ends."""

    async def __call__(
        self,
        *,
        telemetry: ServerTelemetry | None = None,
        **settings: Any,  # noqa: ANN401 settings of all types
    ) -> RunningServer: ...


def make_config(checkpoints: tuple[Path, Path], **settings: Any) -> ServerConfig:  # noqa: ANN401
    """Small limits, so that every one of them is reached quickly, and no patience at the end."""
    stream_path, gen_path = checkpoints
    values: dict[str, Any] = {
        "stream_model": str(stream_path),
        "gen_model": str(gen_path),
        "listen": "127.0.0.1:0",
        "device": "cpu",
        "dtype": "float32",
        "num_threads": 1,
        "max_sessions": 6,
        "max_classify_calls": 2,
        "max_tokens_per_message": 32,
        "max_message_bytes": 400,
        "max_messages": 6,
        "max_context_tokens": 1024,
        "max_num_batched_tokens": 64,
        "kv_memory_gib": 0.02,
        "drain_delay_s": 0,
        "grace_s": 0,
    }
    return ServerConfig(**(values | settings))


async def failure_of(call: Awaitable[object]) -> Failure:
    """How a call with one response fails."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return Failure.of(raised.value)
