"""How streams end that did not finish, and whom that does not disturb."""

import asyncio

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import (
    Abandoned,
    Draining,
    EngineError,
    EngineUnavailable,
    StreamTimeout,
    WrongState,
)
from guardwire_server.engine import session_manager
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import ids, opening
from tests.engine.fakes import TIMEOUT_S
from tests.engine.streams import SESSION_LIMITS, Reader, Server, is_ready


async def ended_with(stream: StreamSession) -> Exception | None:
    reader = Reader(stream)
    async with asyncio.timeout(TIMEOUT_S):
        await reader.task
    return reader.error


async def test_a_failed_step_ends_its_streams_and_no_others() -> None:
    server = Server()
    async with server.manager.open() as unlucky, server.manager.open() as lucky:
        unlucky.handle(opening())
        server.backend.num_failures_to_come = 1
        server.thread.run_until_idle()
        assert isinstance(await ended_with(unlucky), EngineError)
        for event in (opening(), ev.FinishRequested()):
            lucky.handle(event)
        server.thread.run_until_idle()
        assert await ended_with(lucky) is None


async def test_a_lost_device_is_told_to_a_stream_that_awaits_its_open() -> None:
    server = Server()
    async with server.manager.open() as stream:
        server.thread.apply()
        error = EngineUnavailable("DEVICE_LOST", "lost")
        server.engine.deliver(server.engine.fail_all(error))
        assert await ended_with(stream) is error


async def test_results_of_streams_that_are_gone_are_passed_over() -> None:
    server = Server()
    async with server.manager.open() as stream:
        stream.handle(opening())
        while server.thread.inbox:
            server.thread.apply()
        server.thread.step()
    server.thread.run_until_idle()
    assert server.manager.num_sessions == 0


async def test_draining_admits_nothing_and_tells_who_is_open() -> None:
    server = Server()
    async with server.manager.open() as stream, server.manager.open() as unopened:
        stream.handle(opening())
        server.manager.drain(5.0)
        with pytest.raises(Draining):
            server.manager.open()
        stream.handle(ev.FinishRequested())
        server.thread.run_until_idle()
        reader = Reader(stream)
        await reader.task
        assert ev.DrainingNoted(5.0) in reader.updates
        unopened.handle(ev.InputEnded())
        assert isinstance(await ended_with(unopened), WrongState)


async def test_deadlines_are_looked_at_by_the_clock() -> None:
    server = Server()
    async with server.manager.open() as idle, server.manager.open() as active:
        idle.handle(opening())
        active.handle(opening())
        server.thread.run_until_idle()
        server.clock.now_s += 9.0
        active.push(20)
        server.thread.run_until_idle()
        server.clock.now_s += 1.0
        server.manager.check_deadlines()
        error = await ended_with(idle)
        assert isinstance(error, StreamTimeout)
        assert error.reason == "IDLE_TIMEOUT"
        assert await is_ready(active)
        active.handle(ev.InputEnded())
        assert isinstance(await ended_with(active), Abandoned)


async def test_the_tick_looks_at_the_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_manager, "TICK_S", 0.0)
    server = Server()
    tick = asyncio.create_task(server.manager.tick())
    async with server.manager.open() as stream:
        server.clock.now_s += SESSION_LIMITS.idle_timeout_s
        assert isinstance(await ended_with(stream), StreamTimeout)
    tick.cancel()
    await asyncio.wait([tick])


async def test_a_fault_in_one_stream_does_not_reach_the_others_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    async with server.manager.open() as broken, server.manager.open() as healthy:
        readers = [Reader(broken), Reader(healthy)]
        for stream in (broken, healthy):
            await stream.handle_open(opening())
            stream.handle(ev.TokensPushed(ids(20, 21)))
            stream.handle(ev.FinishRequested())
        monkeypatch.setattr(broken, "handle", raise_fault)
        server.thread.run_until_idle()
        await asyncio.wait([reader.task for reader in readers])
    assert isinstance(readers[0].error, EngineError)
    assert "fault" not in readers[0].error.message
    assert readers[1].error is None
    assert isinstance(readers[1].updates[-1], ev.SummaryGiven)


def raise_fault(event: ev.Event) -> None:
    raise ZeroDivisionError("a fault")
