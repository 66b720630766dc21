"""What the benchmark consists of, and what it must reach."""

import asyncio
import sys
from pathlib import Path

from tests.bench.checkpoints import stream_checkpoint
from tests.bench.engine import measure_engine
from tests.bench.machine import describe_commit, describe_machine, describe_versions
from tests.bench.progress import say
from tests.bench.report import Bar, missed_bars, print_tables, write_result
from tests.bench.settings import Settings
from tests.bench.streams import measure_streams

BUSY_LOAD_AVERAGE = 0.5

BARS = (
    Bar("streams", "speedup", 6.0, "16 streams give at least 6 times the tokens per second of one"),
    Bar("streams", "sequences_per_step", 8.0, "an engine step takes more than 8 of 16 streams"),
    Bar("engine", "many_over_cache", 18.0, "16 streams: times the plain key-value cache"),
    Bar("engine", "many_over_reforward", 200.0, "16 streams: times the reference's behaviour"),
    Bar("engine", "many_of_floor", 0.65, "16 streams: share of the floor"),
    Bar("engine", "one_over_cache", 2.8, "1 stream: times the plain key-value cache"),
    Bar("engine", "one_of_floor", 0.75, "1 stream: share of the floor"),
    Bar("engine", "prefill_of_matrix_rate", 0.85, "a prompt of 512 tokens: share of the matrix rate"),
)


def run_sections(settings: Settings, results: Path) -> int:
    """Runs all sections; returns 0 when every bar is reached, else 1."""
    machine = describe_machine()
    if machine["load_average"] > BUSY_LOAD_AVERAGE:
        say(f"the machine is busy (load average {machine['load_average']:.1f}): figures will be low and uneven")
    checkpoint = stream_checkpoint()
    sections = {
        "streams": asyncio.run(measure_streams(checkpoint, settings)),
        "engine": measure_engine(checkpoint, settings),
    }
    result = {
        "machine": machine,
        "versions": describe_versions(),
        "commit": describe_commit(),
        "settings": settings.as_json(),
        **sections,
    }
    print_tables(result, BARS)
    say(f"wrote {write_result(result, results).name}")
    missed = missed_bars(result, BARS)
    for bar in missed:
        print(f"missed: {bar.meaning}", file=sys.stderr)
    return 1 if missed else 0
