"""Section `telemetry`: what it costs to be seen.

Two servers of the same model, one that tells nothing and one that tells everything: OTLP to a collector (which keeps
nothing), every call traced, the default share of the engine steps, and the page for Prometheus. They take turns token
by token, first one first and then the other, because the machine's speed drifts by more than what is looked for; each
then has the time of all its tokens, the slow ones included, during which telemetry was sent. The processor time is told
beside it: it counts what the exporting threads do while the other server has its turn.

A second pair has no model: there the processor time of a token is all the server's own, and what telemetry adds to it
does not drown in the model's.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.front_end import FLAGS as NOOP_FLAGS
from tests.bench.front_end_load import Burst, connected, push_on_calls
from tests.bench.progress import say
from tests.bench.server_process import ServerProcess, module_process, server_process
from tests.bench.settings import Settings
from tests.bench.streams import FLAGS, open_stream, push_together

NUM_ROUNDS = 12
TOKENS_PER_ROUND = 20
"""Of every stream: rounds of some seconds, which show the noise; the figures are those of all rounds together."""

NUM_NOOP_ROUNDS, NOOP_MESSAGES_PER_TOKEN = 9, 20
"""Without a model; messages of a stream in a round, times `Settings.tokens_per_round`."""

Side = TypeVar("Side")

if TYPE_CHECKING:
    Stub = moderation_pb2_grpc.ModerationServiceAsyncStub
    Call = grpc.aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]


async def measure_telemetry(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Tokens per second of both servers, their ratio, and the processor time of a token without a model."""
    async with module_process("tests.bench.collector") as collector:
        flags = ("--otlp-endpoint", f"http://{collector.address}", "--metrics-listen", "127.0.0.1:0")
        with_model = await _measure_with_model(checkpoint, flags, settings)
        without_model = await _measure_without_model(flags, settings)
    return with_model | without_model


class _Watched:
    """A server of the model with its open streams: `round_s` and `round_cpu_s` are what each round took of it."""

    def __init__(self, process: ServerProcess, stub: "Stub", calls: Sequence["Call"]) -> None:
        self._process = process
        self._stub = stub
        self._calls = calls
        self._cpu_s = process.cpu_s()
        self.round_s: list[float] = []
        self.round_cpu_s: list[float] = []

    async def push(self) -> None:
        """One more token on every stream."""
        pushed = await push_together(self._stub, self._calls, 1)
        self.round_s[-1] += pushed.duration_s

    def begin_round(self) -> None:
        """What is pushed from now on belongs to the next round."""
        self.round_s.append(0.0)
        self._cpu_s = self._process.cpu_s()

    def end_round(self) -> None:
        """Takes note of the processor time."""
        self.round_cpu_s.append(self._process.cpu_s() - self._cpu_s)


async def _measure_with_model(checkpoint: Path, flags: Sequence[str], settings: Settings) -> dict[str, object]:
    model = ("--stream-model", str(checkpoint), *FLAGS)
    async with (
        server_process(*model) as off_process,
        server_process(*model, *flags) as on_process,
        grpc.aio.insecure_channel(off_process.address) as off_channel,
        grpc.aio.insecure_channel(on_process.address) as on_channel,
    ):
        off = await _watched(off_process, off_channel, settings)
        on = await _watched(on_process, on_channel, settings)
        for number in range(NUM_ROUNDS):
            for server in (off, on):
                server.begin_round()
            for turn in range(TOKENS_PER_ROUND):
                for server in (on, off) if turn % 2 else (off, on):
                    await server.push()
            for server in (off, on):
                server.end_round()
            say(f"round {number + 1} of {NUM_ROUNDS}: seen, {off.round_s[-1] / on.round_s[-1]:.3f} of the rate unseen")
    num_tokens = NUM_ROUNDS * TOKENS_PER_ROUND * settings.num_streams
    return {
        "off_tokens_per_s": num_tokens / sum(off.round_s),
        "on_tokens_per_s": num_tokens / sum(on.round_s),
        "on_of_off": sum(off.round_s) / sum(on.round_s),
        "round_on_of_off": [off_s / on_s for off_s, on_s in zip(off.round_s, on.round_s, strict=True)],
        "off_cpu_ms": 1000 * sum(off.round_cpu_s) / num_tokens,
        "on_cpu_ms": 1000 * sum(on.round_cpu_s) / num_tokens,
        "round_cpu_on_over_off": [on_s / off_s for off_s, on_s in zip(off.round_cpu_s, on.round_cpu_s, strict=True)],
    }


async def _measure_without_model(flags: Sequence[str], settings: Settings) -> dict[str, object]:
    num_messages = NOOP_MESSAGES_PER_TOKEN * settings.tokens_per_round
    bursts: dict[str, list[Burst]] = {"off": [], "on": []}
    async with (
        module_process("tests.bench.noop_server", *NOOP_FLAGS) as off,
        module_process("tests.bench.noop_server", *NOOP_FLAGS, *flags) as on,
        connected(off) as off_stub,
        connected(on) as on_stub,
    ):
        for number in range(NUM_NOOP_ROUNDS):
            for side, (process, stub) in _in_turn(number, ("off", (off, off_stub)), ("on", (on, on_stub))):
                bursts[side].append(await push_on_calls(process, stub, settings.num_streams, num_messages))
    pairs = zip(bursts["off"], bursts["on"], strict=True)
    return {
        "noop_off_cpu_us": statistics.median(burst.server_cpu_us for burst in bursts["off"]),
        "noop_on_cpu_us": statistics.median(burst.server_cpu_us for burst in bursts["on"]),
        "noop_on_of_off": statistics.median(on.tokens_per_s / off.tokens_per_s for off, on in pairs),
    }


async def _watched(process: ServerProcess, channel: grpc.aio.Channel, settings: Settings) -> _Watched:
    """A server whose streams have their first token behind them, which pays for memory that nobody touched before."""
    stub: Stub = moderation_pb2_grpc.ModerationServiceStub(channel)
    calls = [await open_stream(stub, settings.context_tokens) for _ in range(settings.num_streams)]
    await push_together(stub, calls, 1)
    return _Watched(process, stub, calls)


def _in_turn(number: int, first: tuple[str, Side], second: tuple[str, Side]) -> Sequence[tuple[str, Side]]:
    return (second, first) if number % 2 else (first, second)
