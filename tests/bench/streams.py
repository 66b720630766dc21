r"""Section `streams`: one stream of one-token messages against many at once, through the real server over gRPC.

Every stream waits for its token's verdict before it pushes the next one, as a caller does who holds tokens back. All
streams are open from the beginning; a round measures first one of them alone and then the others together, so that
both see the same machine at nearly the same time and contexts of the same length.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.progress import say
from tests.bench.server_process import server_process
from tests.bench.settings import Settings

FLAGS = ("--gen-model", "none", "--max-context-tokens", "1024", "--kv-memory-gib", "2", "--drain-delay-s", "0")
WORD_ID = 1879  # ` world`; which token it is does not matter
PROMPT_BEGIN = (151644, 872, 198)  # `<|im_start|>user\n`
PROMPT_END = (151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271)  # the answer's header, thinking off

PUSH = pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=[WORD_ID]))

if TYPE_CHECKING:
    Stub = moderation_pb2_grpc.ModerationServiceAsyncStub
    Call = grpc.aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]


@dataclass(frozen=True)
class Pushed:
    """What came of streams that pushed at the same time: `latencies_s` are those of single tokens, in rising order."""

    duration_s: float
    latencies_s: Sequence[float]
    sequences_per_step: float

    @property
    def tokens_per_s(self) -> float:
        """Over all streams."""
        return len(self.latencies_s) / self.duration_s


@dataclass(frozen=True)
class Burst:
    """What some streams did at the same time: `latency_ms` and `latency_p95_ms` are of one token."""

    tokens_per_s: float
    latency_ms: float
    latency_p95_ms: float
    sequences_per_step: float


async def measure_streams(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Tokens per second of one stream and of many, their ratio, and the sequences that an engine step takes."""
    async with (
        server_process("--stream-model", str(checkpoint), *FLAGS) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Stub = moderation_pb2_grpc.ModerationServiceStub(channel)
        model = (await stub.GetServerInfo(pb.GetServerInfoRequest())).models[0]
        say(f"opening {settings.num_streams + 1} streams with {settings.context_tokens} tokens each")
        async with asyncio.TaskGroup() as group:
            opening = [
                group.create_task(open_stream(stub, settings.context_tokens)) for _ in range(settings.num_streams + 1)
            ]
        alone, *together = [task.result() for task in opening]
        await _measure(stub, together, 1)  # the first tokens pay for memory that nobody touched before
        bursts: list[tuple[Burst, Burst]] = []
        for number in range(settings.num_rounds):
            one = await _measure(stub, [alone], settings.tokens_per_round)
            many = await _measure(stub, together, settings.tokens_per_round)
            bursts.append((one, many))
            say(
                f"round {number + 1} of {settings.num_rounds}: one stream {one.tokens_per_s:.1f} tokens/s, many "
                f"{many.tokens_per_s:.1f} tokens/s with {many.sequences_per_step:.1f} sequences a step"
            )
        for stream in (alone, *together):
            stream.cancel()
    return {"dtype": model.dtype, "device": model.device} | _medians(bursts)


def _medians(bursts: Sequence[tuple[Burst, Burst]]) -> dict[str, object]:
    """Medians over the rounds. The speedup is the median of the rounds' own: machines change speed between rounds."""
    figures: dict[str, object] = {}
    for name, side in (("one", 0), ("many", 1)):
        for field in asdict(bursts[0][side]):
            figures[f"{name}_{field}"] = statistics.median(getattr(burst[side], field) for burst in bursts)
    figures["speedup"] = statistics.median(many.tokens_per_s / one.tokens_per_s for one, many in bursts)
    figures["sequences_per_step"] = figures.pop("many_sequences_per_step")
    figures["rounds"] = [{"one": asdict(one), "many": asdict(many)} for one, many in bursts]
    return figures


async def open_stream(stub: "Stub", context_tokens: int, word_id: int = WORD_ID) -> "Call":
    """A stream of that context whose prompt, which repeats one token, is judged."""
    words = [word_id] * (context_tokens - len(PROMPT_BEGIN) - len(PROMPT_END))
    prompt = pb.TemplatedPrompt(token_ids=[*PROMPT_BEGIN, *words, *PROMPT_END])
    call = stub.ModerateStream()
    await call.write(pb.ModerateStreamRequest(open=pb.StreamOpen(templated=prompt, observe_only=True)))
    await read_until(call, "prompt_verdict")
    return call


async def push_together(stub: "Stub", calls: Sequence["Call"], num_tokens: int) -> Pushed:
    """Lets every stream push so many tokens, each after the verdict on the one before."""
    before = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    started_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_push(call, num_tokens)) for call in calls]
    duration_s = time.perf_counter() - started_s
    after = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    return Pushed(
        duration_s,
        latencies_s=sorted(latency_s for task in tasks for latency_s in task.result()),
        sequences_per_step=(after.num_step_sequences - before.num_step_sequences)
        / max(1, after.num_steps - before.num_steps),
    )


async def read_until(call: "Call", kind: str) -> None:
    """Takes responses up to the first of that kind.

    Raises:
        RuntimeError: The stream ended before.
    """
    while True:
        response = await call.read()
        if not isinstance(response, pb.ModerateStreamResponse):
            raise RuntimeError(f"the stream ended: {await call.code()}: {await call.details()}")
        if response.WhichOneof("response") == kind:
            return


def percentile_ms(durations_s: Sequence[float], share: float) -> float:
    """The milliseconds that this share, 0 to 1, of the durations, which are in rising order, do not exceed."""
    return 1000 * durations_s[int(share * (len(durations_s) - 1))]


async def _measure(stub: "Stub", calls: Sequence["Call"], num_tokens: int) -> Burst:
    pushed = await push_together(stub, calls, num_tokens)
    return Burst(
        tokens_per_s=pushed.tokens_per_s,
        latency_ms=1000 * statistics.median(pushed.latencies_s),
        latency_p95_ms=percentile_ms(pushed.latencies_s, 0.95),
        sequences_per_step=pushed.sequences_per_step,
    )


async def _push(call: "Call", num_tokens: int) -> list[float]:
    """Each token's seconds from its push to its verdict."""
    latencies_s = []
    for _ in range(num_tokens):
        started_s = time.perf_counter()
        await call.write(PUSH)
        await read_until(call, "verdicts")
        latencies_s.append(time.perf_counter() - started_s)
    return latencies_s
