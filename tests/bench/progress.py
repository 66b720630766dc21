"""Tells on stderr what the benchmark is doing; stdout holds the tables alone."""

import sys
import time

_STARTED_S = time.monotonic()


def say(message: str) -> None:
    """One line, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED_S:6.1f} s] {message}", file=sys.stderr, flush=True)
