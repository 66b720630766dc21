import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import (
    EngineUnavailable,
    Overloaded,
)
from guardwire_server.core.ports import LONG_TEXT_CHARS
from guardwire_server.core.transitions import State
from guardwire_server.core.verdict import Message
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.session_manager import ManagerLimits
from tests.core.fakes import ids, opening
from tests.core.reference import Caller, Truth
from tests.engine.fakes import TIMEOUT_S, settle
from tests.engine.streams import MANAGER_LIMITS, SESSION_LIMITS, Reader, Server, is_ready


async def test_a_stream_from_open_to_summary() -> None:
    server, truth = Server(), Truth(opening("hello"))
    truth.push([20, 21, 22])
    async with server.manager.open() as stream:
        reader = Reader(stream)
        for event in (truth.opening, ev.TokensPushed(ids(20, 21, 22)), ev.FinishRequested()):
            assert await is_ready(stream)
            stream.handle(event)
        server.thread.run_until_idle()
        await reader.task
    caller = Caller(truth.opening.policy)
    for update in reader.updates:
        caller.take(update)
    caller.check(truth)
    assert reader.error is None


async def test_with_a_real_thread() -> None:
    server, truth = Server(), Truth(opening("hello"))
    truth.push([20, 21, 22])
    thread = DeviceThread([server.engine])
    server.manager.connect(thread, server.engine)
    thread.start()
    caller = Caller(truth.opening.policy)
    async with asyncio.timeout(TIMEOUT_S), server.manager.open() as stream:
        for event in (truth.opening, ev.TokensPushed(ids(20, 21, 22)), ev.FinishRequested()):
            stream.handle(event)
        async for update in stream.updates():
            caller.take(update)
    caller.check(truth)
    assert await thread.stop(TIMEOUT_S)


async def test_no_more_streams_than_admitted() -> None:
    server = Server()
    streams = [server.manager.open() for _ in range(MANAGER_LIMITS.max_sessions)]
    with pytest.raises(Overloaded) as caught:
        server.manager.open()
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_SESSIONS", 1.0)
    async with streams[0]:
        pass
    server.manager.open()
    assert server.manager.num_sessions == MANAGER_LIMITS.max_sessions


async def test_streams_have_names_of_their_own() -> None:
    server = Server()
    names = {server.manager.open().session_id for _ in range(4)}
    assert len(names) == 4


async def test_a_lost_device_admits_nothing_and_leaves_nothing_behind() -> None:
    server = Server()
    server.thread.is_dead = True
    with pytest.raises(EngineUnavailable):
        server.manager.open()
    assert server.manager.num_sessions == 0


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
@pytest.mark.parametrize("is_applied", [False, True], ids=["on its way", "in the engine"])
async def test_leaving_frees_the_sequence_in_every_state(state: State, is_applied: bool) -> None:
    server = Server()
    events: dict[State, list[ev.Event]] = {
        State.AWAITING_OPEN: [],
        State.STREAMING: [opening(), ev.TokensPushed(ids(20))],
        State.CLOSING: [opening(), ev.TokensPushed(ids(20)), ev.FinishRequested()],
        State.ENDED: [opening(), ev.TokensPushed(ids(20)), ev.InputEnded()],
    }
    with contextlib.suppress(ConnectionResetError):
        async with server.manager.open() as stream:
            for event in events[state]:
                stream.handle(event)
            while is_applied and server.thread.inbox:
                server.thread.apply()
            if is_applied and server.engine.has_work:
                server.thread.step()
            raise ConnectionResetError
    server.thread.run_until_idle()
    assert (server.manager.num_sessions, server.scheduler.num_sequences, server.scheduler.arena_used) == (0, 0, 0.0)


async def test_a_caller_is_not_listened_to_while_too_much_is_pending() -> None:
    server = Server()
    async with server.manager.open() as stream:
        reader = Reader(stream)
        stream.handle(opening())
        num_pushed = 0
        while await is_ready(stream):
            stream.push(20)
            num_pushed += 1
        assert num_pushed == SESSION_LIMITS.max_pending_tokens - 1, "the prompt is pending too"
        server.thread.run_until_idle()
        await settle()
        assert await is_ready(stream)
    reader.task.cancel()


async def test_a_caller_who_does_not_read_is_not_listened_to() -> None:
    server = Server()
    async with server.manager.open() as stream:
        stream.handle(opening())
        num_messages = 0
        while await is_ready(stream):
            stream.push(20)
            server.thread.run_until_idle()
            num_messages += 1
            assert num_messages < 100
        assert len(stream._updates) <= MANAGER_LIMITS.max_queued_updates + 2
        updates = stream.updates()
        for _ in range(3):
            await anext(updates)
        assert await is_ready(stream)
        await updates.aclose()  # type: ignore[attr-defined]


async def test_a_slow_reader_is_listened_to_at_its_own_pace_and_misses_nothing() -> None:
    server, truth = Server(manager_limits=ManagerLimits(4, max_queued_updates=2)), Truth(opening())
    caller, most = Caller(truth.opening.policy), 0
    async with server.manager.open() as stream:
        updates = stream.updates()
        stream.handle(truth.opening)
        for token in range(20, 60):
            while not await is_ready(stream):
                server.thread.run_until_idle()
                caller.take(await anext(updates))
            stream.push(token)
            truth.push([token])
            most = max(most, len(stream._updates))
        stream.handle(ev.FinishRequested())
        server.thread.run_until_idle()
        async for update in updates:
            caller.take(update)
    caller.check(truth)
    assert most <= 2 + SESSION_LIMITS.max_pending_tokens


async def test_an_ended_stream_is_not_listened_to() -> None:
    server = Server()
    async with server.manager.open() as stream:
        stream.handle(ev.InputEnded())
        assert not await is_ready(stream)


async def test_an_error_comes_after_all_updates() -> None:
    server = Server()
    async with server.manager.open() as stream:
        for event in (opening(), ev.TokensPushed(ids(20)), ev.RollbackRequested(7), ev.TokensPushed(ids(20))):
            stream.handle(event)
        server.thread.run_until_idle()
        reader = Reader(stream)
        await reader.task
    kinds = [type(update) for update in reader.updates]
    assert [kind for kind in kinds if kind is not ev.DecisionTaken] == [
        ev.StreamOpened,
        ev.PromptVerdict,
        ev.TokenVerdicts,
    ]
    assert reader.error
    assert reader.error.reason == "ROLLBACK_OUT_OF_RANGE"


async def test_a_long_conversation_is_tokenised_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(session_limits=replace(SESSION_LIMITS, max_context_tokens=2 * LONG_TEXT_CHARS))
    threads: list[int] = []
    render = server.manager.renderer.prompt

    def observed(messages: Sequence[Message], thinking: ev.Thinking) -> ev.RenderedTurn:
        threads.append(threading.get_ident())
        return render(messages, thinking)

    monkeypatch.setattr(server.manager.renderer, "prompt", observed)
    for text in ("short", "x" * (LONG_TEXT_CHARS + 1)):
        async with server.manager.open() as stream:
            await stream.handle_open(opening(text))
            assert isinstance(await anext(stream.updates()), ev.StreamOpened)
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()
