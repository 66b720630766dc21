"""Puts the server together: with `judging`, the only place that knows all parts."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from guardwire_server import __version__
from guardwire_server.access.load import load_access
from guardwire_server.access.rules import AccessRules
from guardwire_server.access.usage import Tenants
from guardwire_server.catalogue import catalogue
from guardwire_server.config import ServerConfig
from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.policy_set import PolicySet, built_in_policies
from guardwire_server.judging import Judging
from guardwire_server.model.checkpoint_weights import LoadProgress
from guardwire_server.policy_file import load_policies
from guardwire_server.reloading import Loaded, ReloadedFile, Reloader
from guardwire_server.rpc.authentication import Authentication
from guardwire_server.rpc.call_telemetry import CallInterceptor
from guardwire_server.rpc.caller import tenant_name
from guardwire_server.rpc.health import HealthMonitor
from guardwire_server.rpc.server import SERVICES, RpcServer
from guardwire_server.rpc.service import ModerationService
from guardwire_server.rpc.tls import ServerTls
from guardwire_server.served_models import Models, load_models
from guardwire_server.telemetry.instruments import ServerState
from guardwire_server.telemetry.server import ServerTelemetry

logger = logging.getLogger(__name__)

MIN_STALL_TIMEOUT_S = 3.0
STALL_STEPS = 10
"""A step counts as stalled after 10 times the longest one, and never before 3 s: an orchestrator should restart a
server within seconds, but not one that is only slow."""


CUT_S = 1.0
"""How long the last calls have to be told how they ended, before their connections are closed."""


class Server:
    """The whole server. Owner of all its parts; `start` and `stop` are called once each, on one event loop."""

    def __init__(self, config: ServerConfig, models: Models, telemetry: ServerTelemetry | None = None) -> None:
        """Wires everything; quick. Without `telemetry` nothing is recorded.

        Raises:
            StartupError: If a file that a setting names is not as it must be.
        """
        self._config = config
        self._started_s = time.time()
        self._telemetry = telemetry or ServerTelemetry(__version__)
        self._judging = Judging(config, models, self._telemetry.step_observer)
        self._health = self._health_monitor(models)
        self._tasks: list[asyncio.Task[None]] = []
        self._tls = (
            ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca)
            if config.tls_cert and config.tls_key
            else None
        )
        policies = _policies(config)
        files: list[ReloadedFile[Any]] = [policies, self._tls.files] if self._tls else [policies]
        interceptors: list[grpc.aio.ServerInterceptor] = []  # outermost first: refusals are recorded, too
        if self._telemetry.is_enabled:
            interceptors.append(CallInterceptor(self._telemetry.calls))
        if config.access_file:
            access, authentication = self._authentication(config.access_file)
            files.append(access)
            interceptors.append(authentication)
        self._reloader = Reloader(files, config.reload_interval_s, self._telemetry.reloaded)
        service = ModerationService(
            catalogue(config, models, lambda: policies.value),
            manager=self._judging.manager,
            classifier=self._judging.classifier,
            stream_load=lambda: self._judging.stream_load or EngineLoad(),
            telemetry=self._telemetry,
        )
        self._rpc = RpcServer(
            service,
            self._health,
            has_reflection=config.has_reflection,
            has_channelz=config.channelz,
            credentials=self._tls.credentials() if self._tls else None,
            interceptors=interceptors,
        )
        self._telemetry.observe(self._state)

    async def start(self) -> str:
        """Starts everything; returns the bound address.

        Raises:
            StartupError: If the address cannot be bound.
        """
        self._judging.thread.start()
        address = await self._rpc.start(self._config.listen, self._config.health_listen)
        await self._health.check()
        self._tasks.append(asyncio.create_task(self._health.run()))
        self._tasks.append(asyncio.create_task(self._reloader.run()))
        if self._judging.manager:
            self._tasks.append(asyncio.create_task(self._judging.manager.tick()))
        return address

    async def stop(self) -> None:
        """Drains: NOT_SERVING, a delay for load balancers, word to every stream, the grace period, the end.

        Until everything open has ended new calls are still taken, to be refused with UNAVAILABLE and when to try
        again: gRPC's own refusal in this state can be CANCELLED, which no caller retries.
        """
        self._health.shut_down()
        await asyncio.sleep(self._config.drain_delay_s)
        self._judging.drain(self._config.grace_s)
        await self._judging.emptied(self._config.grace_s)
        self._judging.cut()
        self._health.servicer.end_watches()
        await self._rpc.stop(CUT_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not await self._judging.thread.stop(timeout_s=MIN_STALL_TIMEOUT_S):
            logger.error("the device thread did not end")

    @property
    def health_address(self) -> str | None:
        """Where health alone is served; None without `health_listen`, or before the start."""
        return self._rpc.health_address

    def _authentication(self, access_file: Path) -> tuple[ReloadedFile[AccessRules], Authentication]:
        """Who is let in, by a file that may change."""
        access = ReloadedFile(
            "access_file", lambda: load_access(access_file), lambda rules: tenants.change_rules(rules)
        )
        tenants = Tenants(access.value)
        if access.value.certificates and not self._config.tls_client_ca:
            logger.warning("access_file: its certificates let nobody in without tls_client_ca")
        return access, Authentication(tenants, lambda error: self._telemetry.calls.failed(error, tenant_name()))

    def _state(self) -> ServerState:
        """What telemetry tells of this moment; called from threads that export."""
        judging = self._judging
        return ServerState(
            num_sessions=judging.manager.num_sessions if judging.manager else 0,
            max_sessions=self._config.max_sessions,
            num_calls=judging.classifier.num_calls if judging.classifier else 0,
            stream=judging.stream_load,
            gen=judging.gen_load,
            is_serving=self._health.is_serving,
            started_s=self._started_s,
            certificate_expiry_s=self._tls.not_after if self._tls else None,
            is_refused=self._reloader.is_refused,
        )

    def _health_monitor(self, models: Models) -> HealthMonitor:
        steps_s = [model.longest_step_s for model in (models.stream, models.gen) if model]
        manager = self._judging.manager
        return HealthMonitor(
            SERVICES,
            self._judging.thread,
            manager.probe if manager else None,
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


def _policies(config: ServerConfig) -> ReloadedFile[PolicySet]:
    path = config.policies_file
    return ReloadedFile(
        "policies_file",
        lambda: load_policies(path) if path else Loaded(built_in_policies(), ()),
        lambda policies: logger.info("policies_file: version %s is in force", policies.version),
    )
