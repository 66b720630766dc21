"""Section `sweep`: tokens per second and verdict lag against the number of streams, through the real server.

The load is that of section `streams`: every stream waits for its token's verdict before it pushes the next one. All
streams are open from the beginning. A round measures every number of streams once, so that all of them see the same
machine at nearly the same time, and the streams roll back what they pushed, so that all begin at the same context.
"""

import asyncio
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.progress import say
from tests.bench.server_process import server_process
from tests.bench.settings import Settings
from tests.bench.streams import Pushed, open_stream, percentile_ms, push_together, read_until

FLAGS = ("--gen-model", "none", "--max-context-tokens", "1024", "--kv-memory-gib", "4", "--drain-delay-s", "0")
NUM_STREAMS = {"full": (1, 2, 4, 8, 16, 32, 64), "quick": (1, 4, 16, 64)}
MIN_LAGS = {"full": 200, "quick": 30}
"""By the settings' name: lags of each number of streams, over all rounds; few streams push more tokens for it."""

ROLLBACK = pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=0))

if TYPE_CHECKING:
    from tests.bench.streams import Call, Stub


async def measure_sweep(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """A point for every number of streams: tokens per second, percentiles of the lag, sequences of an engine step."""
    numbers = NUM_STREAMS[settings.name]
    async with (
        server_process("--stream-model", str(checkpoint), *FLAGS) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Stub = moderation_pb2_grpc.ModerationServiceStub(channel)
        model = (await stub.GetServerInfo(pb.GetServerInfoRequest())).models[0]
        say(f"opening {max(numbers)} streams with {settings.context_tokens} tokens each")
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(open_stream(stub, settings.context_tokens)) for _ in range(max(numbers))]
        calls = [task.result() for task in opening]
        await _measure(stub, calls, 1)  # the first tokens pay for memory that nobody touched before
        rounds: dict[int, list[Pushed]] = {number: [] for number in numbers}
        for round_number in range(settings.num_rounds):
            for number, measured in rounds.items():
                measured.append(await _measure(stub, calls[:number], _tokens_per_round(number, settings)))
            rates = ", ".join(f"{number}: {measured[-1].tokens_per_s:.1f}" for number, measured in rounds.items())
            say(f"round {round_number + 1} of {settings.num_rounds}: tokens/s by number of streams: {rates}")
        for call in calls:
            call.cancel()
    return {
        "dtype": model.dtype,
        "device": model.device,
        "context_tokens": settings.context_tokens,
        "points": [{"num_streams": number} | _point(measured) for number, measured in rounds.items()],
    }


def _tokens_per_round(num_streams: int, settings: Settings) -> int:
    """So many of each stream that the percentiles have something to stand on."""
    wanted = MIN_LAGS[settings.name] / (num_streams * settings.num_rounds)
    return max(settings.tokens_per_round, math.ceil(wanted))


async def _measure(stub: "Stub", calls: Sequence["Call"], num_tokens: int) -> Pushed:
    """As `push_together`; takes the tokens back."""
    pushed = await push_together(stub, calls, num_tokens)
    for call in calls:
        await call.write(ROLLBACK)
    for call in calls:
        await read_until(call, "rolled_back")
    return pushed


def _point(rounds: Sequence[Pushed]) -> dict[str, object]:
    """The medians of the rounds' rates; the percentiles of all their lags together."""
    lags_s = sorted(latency_s for pushed in rounds for latency_s in pushed.latencies_s)
    return {
        "tokens_per_s": statistics.median(pushed.tokens_per_s for pushed in rounds),
        "lag_p50_ms": percentile_ms(lags_s, 0.5),
        "lag_p95_ms": percentile_ms(lags_s, 0.95),
        "lag_p99_ms": percentile_ms(lags_s, 0.99),
        "sequences_per_step": statistics.median(pushed.sequences_per_step for pushed in rounds),
        "num_lags": len(lags_s),
    }
