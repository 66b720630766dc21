"""Section `fairness`: what a long prompt costs those who wait for single tokens meanwhile, through the real server.

Some streams push a token after the verdict on the one before, without a pause. Beside them a prompt is opened, and
again, with a while of peace before, between and after: so both see the same machine, whose speed changes by the minute.
A lag counts as one beside a prompt if any of its time was, and every prompt begins otherwise than those before it, so
that nothing of it is known yet.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.progress import say
from tests.bench.server_process import server_process
from tests.bench.settings import Settings
from tests.bench.streams import PUSH, WORD_ID, open_stream, percentile_ms, read_until

NUM_STREAMS = 8
PROMPT_TOKENS = 4096
FLAGS = ("--gen-model", "none", "--max-context-tokens", "4096", "--kv-memory-gib", "4", "--drain-delay-s", "0")

MIN_PROMPTS = {"full": 2, "quick": 1}
MIN_LAGS = {"full": 200, "quick": 60}
"""By the settings' name: lags beside prompts in all, and in each while of peace."""

MAX_ANSWER_TOKENS = 24
"""Then a stream rolls its answer back: were contexts to grow, the later lags would be longer, prompt or not."""

ROLLBACK = pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=0))

if TYPE_CHECKING:
    from tests.bench.streams import Call, Stub


@dataclass(frozen=True)
class Span:
    """A token on its way, from its push to its verdict, or a prompt from its sending to its verdict."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s

    def meets(self, others: Sequence["Span"]) -> bool:
        """Whether any of the others shares a moment with it."""
        return any(self.start_s < other.end_s and other.start_s < self.end_s for other in others)


class Lags:
    """What the streams have measured so far. Owner: `_measure`, which alone waits on it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._added = asyncio.Event()

    def add(self, span: Span) -> None:
        self.spans.append(span)
        self._added.set()

    async def more(self, num_lags: int) -> None:
        """Waits until so many more have been measured."""
        wanted = len(self.spans) + num_lags
        while len(self.spans) < wanted:
            self._added.clear()
            await self._added.wait()


async def measure_fairness(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Verdict lags without and with a prompt being read, the ratio of their p99s, and the seconds of a prompt."""
    async with (
        server_process("--stream-model", str(checkpoint), *FLAGS) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Stub = moderation_pb2_grpc.ModerationServiceStub(channel)
        model = (await stub.GetServerInfo(pb.GetServerInfoRequest())).models[0]
        say(f"opening {NUM_STREAMS} streams with {settings.context_tokens} tokens each")
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(open_stream(stub, settings.context_tokens)) for _ in range(NUM_STREAMS)]
        calls = [task.result() for task in opening]
        lags, prompts = await _measure(stub, calls, MIN_PROMPTS[settings.name], MIN_LAGS[settings.name])
        for call in calls:
            call.cancel()
    return {"dtype": model.dtype, "device": model.device} | _figures(lags, prompts)


async def _measure(
    stub: "Stub", calls: Sequence["Call"], min_prompts: int, min_lags: int
) -> tuple[list[Span], list[Span]]:
    """Lags of tokens, and the prompts that were read meanwhile."""
    lags = Lags()
    prompts: list[Span] = []
    async with asyncio.TaskGroup() as group:
        pushing = [group.create_task(_push_on(call, lags)) for call in calls]
        await lags.more(len(calls))  # the first tokens pay for memory that nobody touched before
        lags.spans.clear()
        await lags.more(min_lags)
        while len(prompts) < min_prompts or len(_beside(lags.spans, prompts)) < min_lags:
            prompts.append(await _read_prompt(stub, WORD_ID + 1 + len(prompts)))
            await lags.more(len(calls) + min_lags)  # some are still on their way from the prompt's time
            num_beside = len(_beside(lags.spans, prompts))
            say(f"prompt {len(prompts)}: {prompts[-1].duration_s:.1f} s, {num_beside} lags beside prompts so far")
        for task in pushing:
            task.cancel()
    return lags.spans, prompts


async def _push_on(call: "Call", lags: Lags) -> None:
    """Pushes token after token until cancelled; a rollback goes out just before a push, which costs no round trip."""
    while True:
        for _ in range(MAX_ANSWER_TOKENS):
            started_s = time.perf_counter()
            await call.write(PUSH)
            await read_until(call, "verdicts")
            lags.add(Span(started_s, time.perf_counter()))
        await call.write(ROLLBACK)


async def _read_prompt(stub: "Stub", word_id: int) -> Span:
    """Has a prompt read and judged."""
    started_s = time.perf_counter()
    call = await open_stream(stub, PROMPT_TOKENS, word_id)
    span = Span(started_s, time.perf_counter())
    call.cancel()
    return span


def _beside(lags: Sequence[Span], prompts: Sequence[Span]) -> list[Span]:
    return [lag for lag in lags if lag.meets(prompts)]


def _figures(lags: Sequence[Span], prompts: Sequence[Span]) -> dict[str, object]:
    """What the section tells."""
    with_s = sorted(lag.duration_s for lag in lags if lag.meets(prompts))
    without_s = sorted(lag.duration_s for lag in lags if not lag.meets(prompts))
    return {
        "num_streams": NUM_STREAMS,
        "prompt_tokens": PROMPT_TOKENS,
        "num_prompts": len(prompts),
        "prompt_s": statistics.median(prompt.duration_s for prompt in prompts),
        "num_lags_without": len(without_s),
        "num_lags_with": len(with_s),
        "p50_without_ms": percentile_ms(without_s, 0.5),
        "p99_without_ms": percentile_ms(without_s, 0.99),
        "p50_with_ms": percentile_ms(with_s, 0.5),
        "p99_with_ms": percentile_ms(with_s, 0.99),
        "p99_with_over_without": percentile_ms(with_s, 0.99) / percentile_ms(without_s, 0.99),
    }
