"""Section `telemetry`: what it costs to be seen.

Two servers of the same model, one that tells nothing and one that tells everything: OTLP to a collector (which keeps
nothing), every call traced, the default share of the engine steps, and the page for Prometheus. Rounds alternate
between them, first one first and then the other, since a machine that gets slower would otherwise favour whoever goes
first. A second pair has no model: there the processor time of a token is all the server's own, so what telemetry adds
to it can be seen, which beside a model drowns in noise.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc
from tests.bench.front_end import FLAGS as NOOP_FLAGS
from tests.bench.front_end import MESSAGES_PER_TOKEN
from tests.bench.front_end_load import Burst, connected, push_on_calls
from tests.bench.module_process import module_process
from tests.bench.progress import say
from tests.bench.server_process import server_process
from tests.bench.settings import Settings
from tests.bench.streams import FLAGS, open_stream, push_together

ROUNDS_PER_ROUND = 3
"""How many times `Settings.num_rounds` pairs are measured: what is looked for is smaller than a round's noise."""

Side = TypeVar("Side")

if TYPE_CHECKING:
    Stub = moderation_pb2_grpc.ModerationServiceAsyncStub
    Call = grpc.aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]


async def measure_telemetry(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Tokens per second of both servers, their ratio, and the processor time of a token without a model."""
    num_rounds = ROUNDS_PER_ROUND * settings.num_rounds
    async with module_process("tests.bench.collector") as collector:
        flags = ("--otlp-endpoint", f"http://{collector.address}", "--metrics-listen", "127.0.0.1:0")
        with_model = await _measure_with_model(checkpoint, flags, settings, num_rounds)
        without_model = await _measure_without_model(flags, settings, num_rounds)
    return with_model | without_model


async def _measure_with_model(
    checkpoint: Path, flags: Sequence[str], settings: Settings, num_rounds: int
) -> dict[str, object]:
    rates: list[tuple[float, float]] = []
    model = ("--stream-model", str(checkpoint), *FLAGS)
    async with (
        server_process(*model) as off_address,
        server_process(*model, *flags) as on_address,
        grpc.aio.insecure_channel(off_address) as off_channel,
        grpc.aio.insecure_channel(on_address) as on_channel,
    ):
        off = await _open(moderation_pb2_grpc.ModerationServiceStub(off_channel), settings)
        on = await _open(moderation_pb2_grpc.ModerationServiceStub(on_channel), settings)
        for number in range(num_rounds):
            measured = {
                side: (await push_together(*side_calls, settings.tokens_per_round)).tokens_per_s
                for side, side_calls in _in_turn(number, ("off", off), ("on", on))
            }
            rates.append((measured["off"], measured["on"]))
            say(f"round {number + 1} of {num_rounds}: {measured['off']:.1f} tokens/s unseen, {measured['on']:.1f} seen")
    return {
        "off_tokens_per_s": statistics.median(off for off, _ in rates),
        "on_tokens_per_s": statistics.median(on for _, on in rates),
        "on_of_off": statistics.median(on / off for off, on in rates),
        "rounds": [{"off": off, "on": on} for off, on in rates],
    }


async def _measure_without_model(flags: Sequence[str], settings: Settings, num_rounds: int) -> dict[str, object]:
    num_messages = MESSAGES_PER_TOKEN * settings.tokens_per_round // 2
    bursts: dict[str, list[Burst]] = {"off": [], "on": []}
    async with (
        module_process("tests.bench.noop_server", *NOOP_FLAGS) as off,
        module_process("tests.bench.noop_server", *NOOP_FLAGS, *flags) as on,
        connected(off) as off_stub,
        connected(on) as on_stub,
    ):
        for number in range(num_rounds):
            for side, (process, stub) in _in_turn(number, ("off", (off, off_stub)), ("on", (on, on_stub))):
                bursts[side].append(await push_on_calls(process, stub, settings.num_streams, num_messages))
    pairs = zip(bursts["off"], bursts["on"], strict=True)
    return {
        "noop_off_cpu_us": statistics.median(burst.server_cpu_us for burst in bursts["off"]),
        "noop_on_cpu_us": statistics.median(burst.server_cpu_us for burst in bursts["on"]),
        "noop_on_of_off": statistics.median(on.tokens_per_s / off.tokens_per_s for off, on in pairs),
    }


async def _open(stub: "Stub", settings: Settings) -> tuple["Stub", Sequence["Call"]]:
    """The streams of one server, with the first token behind them, which pays for memory that nobody touched before."""
    calls = [await open_stream(stub, settings.context_tokens) for _ in range(settings.num_streams)]
    await push_together(stub, calls, 1)
    return stub, calls


def _in_turn(number: int, first: tuple[str, Side], second: tuple[str, Side]) -> Sequence[tuple[str, Side]]:
    return (second, first) if number % 2 else (first, second)
