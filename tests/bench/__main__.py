"""`python -m tests.bench`: measures the server on this machine, prints a table and writes a result file.

Sections run one after another, each alone on the machine; a section is a function that takes the settings and returns
figures. Everything that is compared with each other is measured in one run.
"""

import argparse
import sys
from pathlib import Path

from guardwire_server.config import prepare_process
from tests.bench.settings import FULL, QUICK

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Returns 0 when every bar is reached, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sections: some minutes")
    parser.add_argument("--only", nargs="*", default=[], metavar="SECTION", help="some sections, by name")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result file goes")
    options = parser.parse_args()
    prepare_process()
    from tests.bench.sections import run_sections  # imports torch, which reads what was just prepared

    return run_sections(QUICK if options.quick else FULL, options.results, options.only)


if __name__ == "__main__":
    sys.exit(main())
