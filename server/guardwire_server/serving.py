"""A server as a process: from loading to SIGTERM."""

import asyncio
import gc
import logging
import signal
from collections.abc import Callable

from guardwire_server.app import Server, load_models
from guardwire_server.config import ServerConfig
from guardwire_server.model.checkpoint_weights import LoadProgress
from guardwire_server.ready_file import claim_ready_file
from guardwire_server.rpc.server import check_address

logger = logging.getLogger(__name__)


async def serve(config: ServerConfig, on_progress: Callable[[str], LoadProgress] | None = None) -> None:
    """Runs a server until SIGTERM or SIGINT; the ready file, if any, holds the address exactly while it serves.

    Raises:
        StartupError: If it cannot start.
    """
    with claim_ready_file(config.ready_file) as write_ready_file:
        check_address(config.listen)  # loading takes minutes: what can be found out before is
        server = Server(config, load_models(config, on_progress))  # a signal during this ends the process at once
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        address = await server.start()
        logger.info("serving on %s", address)
        _leave_loaded_objects_alone()
        write_ready_file(address)
        await stopped.wait()
        logger.info("stopping: open calls have %g s", config.drain_delay_s + config.grace_s)
    await server.stop()
    logger.info("stopped")


def _leave_loaded_objects_alone() -> None:
    """Takes what lives to the end out of the garbage collector's sight.

    torch and transformers make some 400,000 objects. A full collection goes through all of them, which holds every
    stream up: for 180 ms on the machine where this was measured, and for no time to speak of without them.
    """
    gc.collect()
    gc.freeze()
