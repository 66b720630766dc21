"""Four times more streams than the arena holds: the same verdicts as alone, in the arena's memory and a little more."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_device import DTYPES
from guardwire_server.model.ragged_attention import kv_bytes_per_token
from tests.e2e.conftest import StartProcess
from tests.e2e.server_process import needs_memory_map
from tests.model.checkpoints import write_stream_checkpoint
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.stream_call import Received, StreamCall, assert_same_prompt_verdict, assert_same_verdicts

CONTEXT_TOKENS = 256
NUM_HELD = 4
"""Streams that the arena holds when they have outgrown half a context."""

NUM_STREAMS = 4 * NUM_HELD
TOKENS_PER_ROUND, NUM_ROUNDS = 70, 3
"""All streams push in turn: each is pushed out before it is pushed to again."""

KV_HEADS, HEAD_DIM = 8, 256
"""Keys and values of 32 KiB a token, so that the arena takes 32 MiB and all streams would take 128."""

MAX_MORE_BYTES = 16 * 2**20
"""What the server may take beyond its arena: heap, buffers, the streams' own records."""


@needs_memory_map
async def test_four_times_more_streams_than_the_arena_holds(start_process: StartProcess, tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path / "stream", heads=KV_HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
    checkpoint = open_checkpoint(str(path))
    arena_bytes = NUM_HELD * CONTEXT_TOKENS * kv_bytes_per_token(checkpoint.config, DTYPES["float32"])
    server = start_process(
        stream_model=path,
        gen_model="none",
        dtype="float32",
        max_context_tokens=CONTEXT_TOKENS,
        kv_memory_gib=arena_bytes / 2**30,
    )
    address = await server.ready()
    before = server.own_bytes
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ModerationServiceStub(channel)
        together = await run(stub, range(NUM_STREAMS))
        growth = server.own_bytes - before
        load = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
        alone = [(await run(stub, [number]))[0] for number in range(NUM_STREAMS)]
    num_tokens = sum(one.opened.num_prompt_tokens + len(one.verdicts) for one in together if one.opened)
    assert load.num_step_tokens > 1.5 * num_tokens, "they were not pushed out"
    assert growth <= arena_bytes + MAX_MORE_BYTES  # the keys and values of all streams would be four times the arena
    for one, other in zip(together, alone, strict=True):
        assert len(one.verdicts) == NUM_ROUNDS * TOKENS_PER_ROUND
        assert_same_prompt_verdict(one.prompt_verdicts[0], other.prompt_verdicts[0])
        assert_same_verdicts(one.verdicts, other.verdicts)


async def run(stub: "pb_grpc.ModerationServiceAsyncStub", numbers: Sequence[int]) -> list[Received]:
    """Runs some streams beside each other: a round begins when all have been answered in the one before."""
    async with AsyncExitStack() as open_calls:
        calls = [await open_calls.enter_async_context(StreamCall(stub.ModerateStream())) for _ in numbers]
        for call, number in zip(calls, numbers, strict=True):
            await call.send(opening([user(f"Question number {number}?")]))
        for start in range(0, NUM_ROUNDS * TOKENS_PER_ROUND, TOKENS_PER_ROUND):
            stop = start + TOKENS_PER_ROUND
            for call, number in zip(calls, numbers, strict=True):
                await call.send(tokens(answer_ids(stop, seed=number)[start:]))
            await asyncio.gather(*(call.read_verdicts(stop) for call in calls))
        for call in calls:
            await call.send(finish())
        return list(await asyncio.gather(*(call.read_all() for call in calls)))
