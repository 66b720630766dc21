"""`python -m tests.bench`: measures the server on this machine, prints a table and writes a result file.

Sections run one after another, each alone on the machine; a section is a function that takes the settings and returns
figures. Everything that is compared with each other is measured in one run.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from tests.bench.checkpoints import stream_checkpoint
from tests.bench.engine import measure_engine
from tests.bench.machine import describe_commit, describe_machine, describe_versions
from tests.bench.progress import say
from tests.bench.report import Bar, missed_bars, print_tables, write_result
from tests.bench.settings import FULL, QUICK, Settings
from tests.bench.streams import measure_streams

BUSY_LOAD_AVERAGE = 0.5
RESULTS = Path(__file__).parent / "results"

BARS = (
    Bar("streams", "speedup", 6.0, "16 streams give at least 6 times the tokens per second of one"),
    Bar("streams", "sequences_per_step", 8.0, "an engine step takes more than 8 of 16 streams"),
)


def main() -> int:
    """Returns 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens: about a minute")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result file goes")
    options = parser.parse_args()
    return run(QUICK if options.quick else FULL, options.results)


def run(settings: Settings, results: Path) -> int:
    """Runs all sections."""
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


if __name__ == "__main__":
    sys.exit(main())
