"""The health check's probe: one token that goes the whole way through the device."""

import asyncio

import pytest

from guardwire_server.core.errors import EngineError, EngineUnavailable
from tests.engine.fakes import settle
from tests.engine.streams import Server


async def test_a_probe_goes_the_whole_way_and_leaves_nothing_behind() -> None:
    server = Server()
    probe = asyncio.create_task(server.manager.probe())
    await settle()
    assert not probe.done()
    server.thread.run_until_idle()
    await probe
    server.thread.run_until_idle()
    assert (server.backend.num_steps, server.scheduler.num_sequences) == (1, 0)
    assert server.engine.load.num_judged == (0, 0, 0)  # of callers' tokens


async def test_a_probe_whose_step_fails() -> None:
    server = Server()
    probe = asyncio.create_task(server.manager.probe())
    await settle()
    server.backend.num_failures_to_come = 1
    server.thread.run_until_idle()
    with pytest.raises(EngineError):
        await probe


async def test_a_probe_of_a_lost_device() -> None:
    server = Server()
    server.thread.is_dead = True
    with pytest.raises(EngineUnavailable):
        await server.manager.probe()


async def test_a_probe_that_is_given_up_leaves_nothing_behind() -> None:
    server = Server()
    probe = asyncio.create_task(server.manager.probe())
    await settle()
    probe.cancel()
    await asyncio.wait([probe])
    server.thread.run_until_idle()
    assert server.scheduler.num_sequences == 0
