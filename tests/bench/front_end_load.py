"""What callers do to a server in section `front_end`: conversations that push a token and wait for its verdict.

All conversations of a load do so at the same time. A load opens its streams, pushes some tokens that do not count, is
timed, and ends its streams in good order, so that loads which take turns do not disturb each other.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.server_process import ServerProcess

NUM_WARM_UP = 10
TOKEN_ID = 1000  # which one it is does not matter, as long as it is no control token

OPEN = pb.ModerateStreamRequest(
    open=pb.StreamOpen(conversation=pb.Conversation(messages=[pb.Message(role=pb.ROLE_USER, content="How are you?")]))
)
PUSH = pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=[TOKEN_ID]))
FINISH = pb.ModerateStreamRequest(finish=pb.Finish())

if TYPE_CHECKING:
    _Stub = moderation_pb2_grpc.ModerationServiceAsyncStub
    _StreamCall = grpc.aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]
    _ManyCall = grpc.aio.StreamStreamCall[pb.ModerateStreamsRequest, pb.ModerateStreamsResponse]


@dataclass(frozen=True)
class Burst:
    """What a load achieved; `server_cpu_us` are the microseconds that the server computed for one token."""

    tokens_per_s: float
    server_cpu_us: float


@contextlib.asynccontextmanager
async def connected(process: ServerProcess) -> AsyncIterator["_Stub"]:
    """A stub with a channel of its own."""
    async with grpc.aio.insecure_channel(process.address) as channel:
        yield moderation_pb2_grpc.ModerationServiceStub(channel)


async def push_on_calls(
    process: ServerProcess, stub: "_Stub", num_calls: int, num_tokens: int, *, opens: bool = True
) -> Burst:
    """Lets every conversation push so many tokens on a call of its own; `opens` is False for a server without state."""
    calls = [stub.ModerateStream() for _ in range(num_calls)]
    if opens:
        await asyncio.gather(*(_ask(call, OPEN, "prompt_verdict") for call in calls))
    await asyncio.gather(*(_push(call, NUM_WARM_UP) for call in calls))
    stopwatch = Stopwatch(process)
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(_push(call, num_tokens))
    burst = stopwatch.burst(num_calls * num_tokens)
    await asyncio.gather(*(_finish(call, FINISH) for call in calls))
    return burst


async def push_together(
    process: ServerProcess, stub: "_Stub", num_conversations: int, num_steps: int, *, packed: bool
) -> Burst:
    """Lets conversations share a call: each message is a step of the caller's engine, a token for every one of them."""
    call = stub.ModerateStreams()
    ids = range(num_conversations)
    await _ask_for_all(call, _for_all(OPEN, ids), "prompt_verdict")
    step = pb.TokenStep(stream_ids=ids, token_ids=[TOKEN_ID] * num_conversations)
    push = pb.ModerateStreamsRequest(step=step) if packed else _for_all(PUSH, ids)
    for _ in range(NUM_WARM_UP):
        await _ask_for_all(call, push, "verdicts")
    stopwatch = Stopwatch(process)
    for _ in range(num_steps):
        await _ask_for_all(call, push, "verdicts")
    burst = stopwatch.burst(num_conversations * num_steps)
    await _finish(call, _for_all(FINISH, ids))
    return burst


class Stopwatch:
    """Measures from its creation to `burst`."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._cpu_s = process.cpu_s()
        self._started_s = time.perf_counter()

    def burst(self, num_tokens: int) -> Burst:
        """What so many tokens took."""
        duration_s = time.perf_counter() - self._started_s
        return Burst(num_tokens / duration_s, 1e6 * (self._process.cpu_s() - self._cpu_s) / num_tokens)


def _for_all(request: pb.ModerateStreamRequest, stream_ids: Sequence[int]) -> pb.ModerateStreamsRequest:
    """The same request for every stream."""
    items = [pb.StreamRequest(stream_id=stream_id, request=request) for stream_id in stream_ids]
    return pb.ModerateStreamsRequest(requests=items)


async def _push(call: "_StreamCall", num_tokens: int) -> None:
    for _ in range(num_tokens):
        await _ask(call, PUSH, "verdicts")


async def _ask(call: "_StreamCall", request: pb.ModerateStreamRequest, kind: str) -> None:
    """Sends a request and reads until a response of that kind."""
    await call.write(request)
    while True:
        response = await call.read()
        if not isinstance(response, pb.ModerateStreamResponse):
            raise RuntimeError("the stream ended")
        if response.WhichOneof("response") == kind:
            return


async def _ask_for_all(call: "_ManyCall", request: pb.ModerateStreamsRequest, kind: str) -> None:
    """Sends a request with an item for each stream and reads until each of them has a response of that kind."""
    await call.write(request)
    num_missing = len(request.requests) + len(request.step.stream_ids)
    while num_missing:
        message = await call.read()
        if not isinstance(message, pb.ModerateStreamsResponse):
            raise RuntimeError("the call ended")
        num_missing -= len(message.step.stream_ids)
        for item in message.responses:
            if item.response.WhichOneof("response") == kind:
                num_missing -= 1
            elif item.HasField("error"):
                raise RuntimeError(f"stream {item.stream_id} ended: {item.error.message}")


async def _finish(call: "grpc.aio.StreamStreamCall[Any, Any]", request: Message) -> None:
    """Ends a call and waits until the server has let it go."""
    await call.write(request)
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
