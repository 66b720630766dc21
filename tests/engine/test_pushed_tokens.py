"""Tokens that come one by one: those of one round of the loop go to the engine as one message, in their order."""

import asyncio
from collections.abc import Iterable

from guardwire_server.core import events as ev
from guardwire_server.engine.device_thread import DeviceThread
from guardwire_server.engine.stream_engine import SequenceMessage, TokenStep
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import THINK, ids, opening
from tests.core.reference import Caller, Truth
from tests.engine.fakes import TIMEOUT_S
from tests.engine.streams import Reader, Server


def opened(server: Server) -> StreamSession:
    stream = server.manager.open()
    stream.handle(opening("hello"))
    server.thread.run_until_idle()
    return stream


def kinds(messages: Iterable[object]) -> list[type]:
    return [type(one.command if isinstance(one, SequenceMessage) else one) for one in messages]


async def test_tokens_that_follow_each_other_are_one_message() -> None:
    server = Server()
    first, second = opened(server), opened(server)
    for stream, token_id in ((first, 20), (second, 21), (first, 22)):
        stream.push(token_id)
    assert list(server.thread.inbox) == [TokenStep([first.seq_id, second.seq_id, first.seq_id], ids(20, 21, 22))]


async def test_nothing_overtakes_what_came_before_it() -> None:
    server = Server()
    first, second = opened(server), opened(server)
    first.push(20)
    second.push(21)
    first.handle(ev.RollbackRequested(0))
    first.push(22)
    first.push(THINK)  # scaffold: no simple token
    second.push(23)
    assert kinds(server.thread.inbox) == [TokenStep, ev.TruncateSequence, TokenStep, ev.ExtendSequence, TokenStep]


async def test_nothing_overtakes_on_its_way_to_a_real_thread() -> None:
    server = Server()
    stream, thread = opened(server), DeviceThread([server.engine])
    server.manager.connect(thread, server.engine)
    assert thread.newest is None
    stream.push(20)
    stream.push(21)
    stream.handle(ev.RollbackRequested(0))
    stream.push(22)
    messages = [message for _, message in thread._outbox]
    assert kinds(messages) == [TokenStep, ev.TruncateSequence, TokenStep]
    assert messages[0] == TokenStep([stream.seq_id] * 2, ids(20, 21))
    thread.start()
    assert thread.newest is None, "what has left is not added to"
    assert await thread.stop(TIMEOUT_S)


async def test_what_has_left_is_not_added_to() -> None:
    server = Server()
    stream = opened(server)
    stream.push(20)
    server.thread.apply()
    stream.push(21)
    assert list(server.thread.inbox) == [TokenStep([stream.seq_id], ids(21))]


async def test_streams_that_push_one_token_at_a_time_to_a_real_thread() -> None:
    server, truths = Server(), [Truth(opening("hello")) for _ in range(4)]
    thread = DeviceThread([server.engine])
    server.manager.connect(thread, server.engine)
    thread.start()

    async def converse(number: int, truth: Truth) -> None:
        caller = Caller(truth.opening.policy)
        async with server.manager.open() as stream:
            reader = Reader(stream)
            stream.handle(truth.opening)
            for token_id in range(20 + number, 50 + number):
                await stream.ready_for_input()
                stream.push(token_id)
                truth.push([token_id])
                await asyncio.sleep(0)
            stream.handle(ev.FinishRequested())
            await reader.task
        for update in reader.updates:
            caller.take(update)
        caller.check(truth)

    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        for number, truth in enumerate(truths):
            group.create_task(converse(number, truth))
    assert await thread.stop(TIMEOUT_S)
