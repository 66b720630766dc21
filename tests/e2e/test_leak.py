"""Streams that come and go by the thousand leave nothing behind: no session, no cached token, no memory."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.e2e.conftest import StartProcess
from tests.e2e.server_process import WAIT_S, needs_memory_map
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.stream_call import Call

NUM_WARM_UP_STREAMS = 1_000
"""Enough for everything that grows once: the heap of so many streams at a time, caches with a bound."""

NUM_STREAMS = 10_000
NUM_CHANNELS = 4
NUM_AT_ONCE = 16
"""Streams open at a time, on each channel."""

NUM_TOKENS = 5
MAX_GROWTH_BYTES = 20_000_000
SETTLE_S = 1.0

if TYPE_CHECKING:
    Stub = pb_grpc.ModerationServiceAsyncStub


@needs_memory_map
@pytest.mark.timeout(300)
async def test_ten_thousand_streams(start_process: StartProcess) -> None:
    server = start_process(gen_model="none")
    address = await server.ready()
    async with contextlib.AsyncExitStack() as channels:
        options = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
        stubs = [
            pb_grpc.ModerationServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            )
            for _ in range(NUM_CHANNELS)
        ]
        numbers = itertools.count()
        await come_and_go(stubs, itertools.islice(numbers, NUM_WARM_UP_STREAMS))
        await all_gone(stubs[0])
        before = server.own_bytes
        await come_and_go(stubs, itertools.islice(numbers, NUM_STREAMS))
        await all_gone(stubs[0])
        growth = server.own_bytes - before
    assert growth <= MAX_GROWTH_BYTES, f"{growth / NUM_STREAMS:.0f} bytes a stream"
    assert "Traceback" not in server.errors


async def come_and_go(stubs: "Sequence[Stub]", numbers: Iterator[int]) -> None:
    """Opens and ends a stream for every number, in three ways by turns, some at a time on every channel."""
    async with asyncio.TaskGroup() as group:
        for stub in (*stubs,) * NUM_AT_ONCE:
            group.create_task(take_turns(stub, numbers))


async def take_turns(stub: "Stub", numbers: Iterator[int]) -> None:
    ways: Sequence[Callable[[Call, int], Awaitable[None]]] = (cancel_at_once, cancel_after_tokens, run_to_the_end)
    for number in numbers:
        call = stub.ModerateStream()
        await call.write(opening([user(f"How do I bake {number} loaves?")]))
        await ways[number % len(ways)](call, number)


async def cancel_at_once(call: Call, number: int) -> None:
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def cancel_after_tokens(call: Call, number: int) -> None:
    """Some of them while the verdicts are still to come."""
    await call.write(tokens(answer_ids(NUM_TOKENS, seed=number)))
    if number % 2:
        while not (await response(call)).HasField("verdicts"):
            pass
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def run_to_the_end(call: Call, number: int) -> None:
    await call.write(tokens(answer_ids(NUM_TOKENS, seed=number)))
    await call.write(finish())
    while not (last := await response(call)).HasField("summary"):
        pass
    assert last.summary.num_tokens == NUM_TOKENS
    assert await call.code() is grpc.StatusCode.OK


async def response(call: Call) -> pb.ModerateStreamResponse:
    """The next one; there must be one."""
    read = await call.read()
    assert isinstance(read, pb.ModerateStreamResponse), await call.details()
    return read


async def all_gone(stub: "Stub") -> None:
    """Waits a moment, for what the server notices or puts away late, and until it says that nothing is open."""
    await asyncio.sleep(SETTLE_S)  # another process: there is nothing to wait on
    async with asyncio.timeout(WAIT_S):
        while True:
            load = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
            if (load.num_sessions, load.num_pending_tokens, load.kv_arena_used) == (0, 0, 0):
                return
