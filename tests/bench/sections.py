"""What the benchmark consists of, and what it must reach."""

import asyncio
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.bench.checkpoints import gen_checkpoint, stream_checkpoint
from tests.bench.classify import measure_classify
from tests.bench.engine import measure_engine
from tests.bench.fairness import measure_fairness
from tests.bench.front_end import measure_front_end
from tests.bench.machine import describe_commit, describe_machine, describe_versions
from tests.bench.picture import draw
from tests.bench.progress import say
from tests.bench.report import Bar, missed_bars, print_tables, write_result
from tests.bench.settings import Settings
from tests.bench.streams import measure_streams
from tests.bench.sweep import measure_sweep
from tests.bench.telemetry import measure_telemetry

BUSY_LOAD_AVERAGE = 0.5
QUICK_CLASSIFY_REPEATS = 2
NUM_TEXTS = {"full": 500, "quick": 20}

Section = Callable[[Settings], dict[str, object]]

SECTIONS: dict[str, Section] = {
    "streams": lambda settings: asyncio.run(measure_streams(stream_checkpoint(), settings)),
    "engine": lambda settings: measure_engine(stream_checkpoint(), settings),
    "classify": lambda settings: asyncio.run(
        measure_classify(
            gen_checkpoint(),
            replace(settings, num_repeats=QUICK_CLASSIFY_REPEATS) if settings.name == "quick" else settings,
            num_texts=NUM_TEXTS[settings.name],
        )
    ),
    "front_end": lambda settings: asyncio.run(measure_front_end(settings)),
    "fairness": lambda settings: asyncio.run(measure_fairness(stream_checkpoint(), settings)),
    "sweep": lambda settings: asyncio.run(measure_sweep(stream_checkpoint(), settings)),
    "telemetry": lambda settings: asyncio.run(measure_telemetry(stream_checkpoint(), settings)),
}

PICTURED = {"sweep", "engine"}

QUICK_SECTIONS = ("streams", "engine", "classify", "front_end")

BARS = (
    Bar("streams", "speedup", 6.0, "16 streams give at least 6 times the tokens per second of one"),
    Bar("streams", "sequences_per_step", 8.0, "an engine step takes more than 8 of 16 streams"),
    Bar("engine", "many_over_cache", 18.0, "16 streams: times the plain key-value cache"),
    Bar("engine", "many_over_reforward", 200.0, "16 streams: times the reference's behaviour"),
    Bar("engine", "many_of_floor", 0.65, "16 streams: share of the floor"),
    Bar("engine", "one_over_cache", 2.8, "1 stream: times the plain key-value cache"),
    Bar("engine", "one_of_floor", 0.75, "1 stream: share of the floor"),
    Bar("engine", "prefill_of_matrix_rate", 0.85, "a prompt of 512 tokens: share of the matrix rate"),
    Bar(
        "engine",
        "growth_over_floors",
        1.3,
        "16 streams, 64 to 4,096 tokens: times the floor's growth",
        is_maximum=True,
    ),
    Bar("classify", "warm_speedup", 5.0, "Classify, template known: times generate"),
    Bar("classify", "cold_speedup", 2.2, "Classify, nothing known: times generate"),
    Bar("front_end", "noop_of_echo", 0.7, "one-token messages without a model: share of a bare grpc.aio echo"),
    Bar("front_end", "many_over_one", 10.0, "256 conversations on one call: times one call each"),
    Bar("fairness", "p99_with_over_without", 3.0, "p99 lag beside a long prompt: times that without", is_maximum=True),
    Bar("telemetry", "on_of_off", 0.97, "all telemetry on: share of the tokens per second without"),
)


def run_sections(settings: Settings, results: Path, only: list[str]) -> int:
    """Runs the sections, or `only` some; returns 0 when every bar of theirs is reached, else 1."""
    machine = describe_machine()
    if machine["load_average"] > BUSY_LOAD_AVERAGE:
        say(f"the machine is busy (load average {machine['load_average']:.1f}): figures will be low and uneven")
    measured: dict[str, dict[str, object]] = {}
    for name in only or (QUICK_SECTIONS if settings.name == "quick" else tuple(SECTIONS)):
        say(f"section {name}")
        measured[name] = SECTIONS[name](settings)
        gc.collect()  # models refer to themselves, and two at once are too many for a small machine
    result = {
        "machine": machine,
        "versions": describe_versions(),
        "commit": describe_commit(),
        "settings": settings.as_json(),
        **measured,
    }
    bars = [bar for bar in BARS if bar.section in measured]
    print_tables(result, bars)
    say(f"wrote {write_result(result, results).name}")
    if measured.keys() >= PICTURED:
        draw(result, results / "throughput.svg")
    missed = missed_bars(result, bars)
    for bar in missed:
        print(f"missed: {bar.meaning}", file=sys.stderr)
    return 1 if missed else 0
