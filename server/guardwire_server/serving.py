"""A server as a process: from loading to SIGTERM."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator

from guardwire_server import __version__
from guardwire_server.app import Server
from guardwire_server.check_config import rules_in_force
from guardwire_server.config import ServerConfig
from guardwire_server.model.checkpoint_weights import LoadProgress
from guardwire_server.ready_file import claim_ready_file
from guardwire_server.served_models import load_models
from guardwire_server.telemetry.providers import Telemetry, TelemetrySettings
from guardwire_server.telemetry.server import ServerTelemetry

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""How long the last telemetry has to reach its collector: one export's usual time, and not so long that an orchestrator
which waits for a little more than the grace period loses its patience."""


async def serve(config: ServerConfig, on_progress: Callable[[str], LoadProgress] | None = None) -> None:
    """Runs a server until SIGTERM or SIGINT; the ready file, if any, holds the address exactly while it serves.

    Raises:
        StartupError: If it cannot start.
    """
    async with _telemetry(config) as telemetry:
        with claim_ready_file(config.ready_file) as write_ready_file:
            with _interruptible():  # loading takes long, and leaves nothing behind that must be ended in good order
                models = load_models(config, on_progress)
            server = Server(config, models, telemetry)
            rules = rules_in_force(config)
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stopped.set)
            address = await server.start()
            for rule in rules:
                logger.info("%s", rule)
            if server.health_address:
                logger.info("health alone on %s", server.health_address)
            logger.info("serving on %s", address)
            _leave_loaded_objects_alone()
            write_ready_file(address)
            await stopped.wait()
            logger.info("stopping: open calls have %g s", config.drain_delay_s + config.grace_s)
        await server.stop()
        logger.info("stopped")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGINT end the block at once, as SIGTERM does by itself; asyncio's handler would wait for the next await."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.asynccontextmanager
async def _telemetry(config: ServerConfig) -> AsyncIterator[ServerTelemetry]:
    """Exports what is recorded in the block, up to its end."""
    telemetry = Telemetry(
        TelemetrySettings(
            version=__version__,
            otlp_endpoint=config.otlp_endpoint,
            metrics_listen=config.metrics_listen,
            metrics_interval_s=config.metrics_interval_s,
            trace_ratio=config.trace_ratio,
        )
    )
    telemetry.start()
    if telemetry.metrics_address:
        logger.info("metrics on http://%s/metrics", telemetry.metrics_address)
    try:
        yield ServerTelemetry(
            __version__,
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
            logger_provider=telemetry.logger_provider,
            step_trace_ratio=config.step_trace_ratio,
        )
    finally:
        await asyncio.to_thread(telemetry.shutdown, FLUSH_S)


def _leave_loaded_objects_alone() -> None:
    """Takes what lives to the end out of the garbage collector's sight.

    torch and transformers make some 400,000 objects. A full collection goes through all of them, which holds every
    stream up: for 180 ms on the machine where this was measured, and for no time to speak of without them.
    """
    gc.collect()
    gc.freeze()
