"""grpc.health.v1 that notices a device which is dead, stalled or failing while the process looks well.

Theory of operation. Every `interval_s` the monitor asks whether the device thread is alive and whether its present step
has taken longer than `stall_timeout_s`; every PROBE_INTERVAL_S it has a token of its own judged, all the way through
the device and back, and goes on asking while that takes. A stall therefore shows within the stall timeout and an
interval of its beginning, with traffic or without.

Two names are for orchestrators. `readiness` says what all other names say: whether to send calls here. `liveness` says
whether to let the process be, and fails only when nothing but a restart helps: not while the server drains, and not
while it is slow or its steps fail, since a restart in the middle of an overload makes the overload worse.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire_server.core.errors import RequestError
from guardwire_server.engine.device_thread import DeviceThread

logger = logging.getLogger(__name__)

LIVENESS, READINESS = "liveness", "readiness"

PROBE_INTERVAL_S = 5.0
"""How often a token is judged for health's sake: at the cost of one short step, under 1 % of a device."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the device; `is_final` if only a restart helps."""

    reason: str
    is_final: bool


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio-health-checking has no types
    """Answers Check and Watch: one status for `liveness`, one for all other names. Owner: the monitor.

    Thread: the event loop. grpcio-health-checking has a servicer of its own, in which a Watch that ends leaves the
    other ones of its service without news, and in which none ends when the server stops, which then waits for them all
    its grace period.
    """

    def __init__(self, services: Sequence[str]) -> None:
        """Answers for the services and for the whole server, the empty name."""
        self._statuses = dict.fromkeys(("", *services, READINESS, LIVENESS), NOT_SERVING)
        self._is_ended = False
        self._changed = asyncio.Event()  # a new one after every change

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tells the status."""
        status = self._statuses.get(request.service)
        if status is None:
            known = ", ".join(sorted(filter(None, self._statuses)))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there are {known}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tells the status, and again whenever it changes."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, SERVICE_UNKNOWN)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            if self._is_ended:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            await changed.wait()

    def set(self, *, is_ready: bool, is_alive: bool) -> None:
        """Sets the status of all names."""
        for service in self._statuses:
            is_well = is_alive if service == LIVENESS else is_ready
            self._statuses[service] = SERVING if is_well else NOT_SERVING
        self._notify()

    def end_watches(self) -> None:
        """Ends every Watch, now and from now on, once it has told the status."""
        self._is_ended = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HealthMonitor:
    """Owner of the health status. Thread: the event loop. After `shut_down` only `liveness` can still be SERVING."""

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
            services: The names to answer for; those of the whole server and of an orchestrator come by themselves.
            thread: What to watch.
            probe: Judges a token and returns, or raises RequestError; None: nothing can be probed.
            stall_timeout_s: A step or probe that takes longer means NOT_SERVING, until it ends after all.
            interval_s: How often to look.
        """
        self.servicer = HealthServicer(services)
        self._thread = thread
        self._probe = probe
        self._stall_timeout_s = stall_timeout_s
        self._interval_s = interval_s
        self._is_well: bool | None = None  # None: nobody has looked yet
        self._is_alive = True
        self._is_shut_down = False
        self._probed_s = -PROBE_INTERVAL_S

    @property
    def is_serving(self) -> bool:
        """Whether calls are welcome: what `readiness` says."""
        return bool(self._is_well) and not self._is_shut_down

    async def run(self) -> None:
        """Keeps the status true, until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    async def check(self) -> None:
        """Looks once and sets the status."""
        fault = await self._look()
        before = self._is_well, self._is_alive
        self._is_well, self._is_alive = fault is None, fault is None or not fault.is_final
        if (self._is_well, self._is_alive) != before:
            logger.log(logging.ERROR if fault else logging.INFO, "health: %s", fault.reason if fault else "serving")
            self._tell()

    def shut_down(self) -> None:
        """Says from now on that the server is stopping: NOT_SERVING by all names but `liveness`."""
        self._is_shut_down = True
        self._tell()

    def _tell(self) -> None:
        self.servicer.set(is_ready=self.is_serving, is_alive=self._is_alive)

    async def _look(self) -> Fault | None:
        """What is wrong, or None."""
        now_s = asyncio.get_running_loop().time()
        if fault := self._thread_fault():
            return fault
        if self._probe is None or (self._is_well and now_s - self._probed_s < PROBE_INTERVAL_S):
            return None
        self._probed_s = now_s
        num_steps = self._thread.num_steps
        probe = asyncio.ensure_future(self._probe())
        try:
            while not probe.done():
                left_s = now_s + self._stall_timeout_s - asyncio.get_running_loop().time()
                if fault := self._thread_fault():
                    return fault
                if left_s <= 0:
                    is_stuck = self._thread.num_steps == num_steps
                    return Fault(f"no answer to a probe for {self._stall_timeout_s:g} s", is_final=is_stuck)
                await asyncio.wait([probe], timeout=min(left_s, self._interval_s))
            return self._probe_fault(probe.exception())
        finally:
            probe.cancel()
            await asyncio.gather(probe, return_exceptions=True)

    def _thread_fault(self) -> Fault | None:
        if self._thread.is_dead:
            return Fault("the device thread is dead", is_final=True)
        if self._thread.busy_for_s() > self._stall_timeout_s:
            return Fault(f"a step has been running for more than {self._stall_timeout_s:g} s", is_final=True)
        return None

    def _probe_fault(self, error: BaseException | None) -> Fault | None:
        if error is None:
            return None
        if isinstance(error, RequestError):
            return self._thread_fault() or Fault(f"a probe failed: {error.message}", is_final=False)
        logger.error("the health probe raised", exc_info=error)
        return Fault("a probe failed", is_final=False)
