"""grpc.health.v1 that notices a device which is dead, stalled or failing while the process looks well.

Theory of operation. Every `interval_s` the monitor asks whether the device thread is alive and whether its present step
has taken longer than `stall_timeout_s`; every PROBE_INTERVAL_S it has a token of its own judged, all the way through
the device and back. A stall therefore shows within the stall timeout and an interval, with traffic or without.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire_server.core.errors import RequestError
from guardwire_server.engine.device_thread import DeviceThread

logger = logging.getLogger(__name__)

PROBE_INTERVAL_S = 5.0
"""How often a token is judged for health's sake: at the cost of one short step, under 1 % of a device."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio-health-checking has no types
    """Answers Check and Watch, with one status for all services. Owner: the monitor. Thread: the event loop.

    grpcio-health-checking has a servicer of its own, in which a Watch that ends leaves the other ones of its service
    without news, and in which none ends when the server stops, which then waits for them all its grace period.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = frozenset(services)
        self._status = NOT_SERVING
        self._is_ended = False
        self._changed = asyncio.Event()  # a new one after every change

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tells the status."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there are {', '.join(sorted(self._services - {''}))}")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tells the status, and again whenever it changes."""
        told = None
        while True:
            changed = self._changed
            status = self._status if request.service in self._services else SERVICE_UNKNOWN
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._is_ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            await changed.wait()

    def set(self, status: int) -> None:
        """Sets the status of all services."""
        self._status = status
        self._notify()

    def end_watches(self) -> None:
        """Ends every Watch, now and from now on, once it has told the status."""
        self._is_ended = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthMonitor:
    """Owner of the health status. Thread: the event loop. After `shut_down` the status stays NOT_SERVING."""

    def __init__(
        self,
        services: Sequence[str],
        thread: DeviceThread,
        probe: Callable[[], Awaitable[None]] | None,
        *,
        stall_timeout_s: float,
        interval_s: float = 0.5,
    ) -> None:
        """Watches a device thread.

        Args:
            services: The names to answer for; the empty name, the whole server, comes by itself.
            thread: What to watch.
            probe: Judges a token and returns, or raises RequestError; None: nothing can be probed.
            stall_timeout_s: A step or probe that takes longer means NOT_SERVING, until it ends after all.
            interval_s: How often to look.
        """
        self.servicer = HealthServicer(("", *services))
        self._thread = thread
        self._probe = probe
        self._stall_timeout_s = stall_timeout_s
        self._interval_s = interval_s
        self._is_serving: bool | None = None
        self._is_shut_down = False
        self._probed_s = -PROBE_INTERVAL_S

    async def run(self) -> None:
        """Keeps the status true, until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    async def check(self) -> None:
        """Looks once and sets the status."""
        reason = await self._fault()
        is_serving = reason is None
        if is_serving != self._is_serving:
            self._is_serving = is_serving
            logger.log(logging.INFO if is_serving else logging.ERROR, "health: %s", reason or "serving")
            if not self._is_shut_down:
                self.servicer.set(SERVING if is_serving else NOT_SERVING)

    def shut_down(self) -> None:
        """Says NOT_SERVING from now on: the server is stopping."""
        self._is_shut_down = True
        self.servicer.set(NOT_SERVING)

    async def _fault(self) -> str | None:
        """What is wrong with the device, or None."""
        if self._thread.is_dead:
            return "the device thread is dead"
        if self._thread.busy_for_s() > self._stall_timeout_s:
            return f"a step has been running for more than {self._stall_timeout_s:g} s"
        now_s = asyncio.get_running_loop().time()
        if self._probe is None or (self._is_serving and now_s - self._probed_s < PROBE_INTERVAL_S):
            return None
        self._probed_s = now_s
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._probe()
        except TimeoutError:
            return f"no answer to a probe for {self._stall_timeout_s:g} s"
        except RequestError as error:
            return f"a probe failed: {error.message}"
        return None
