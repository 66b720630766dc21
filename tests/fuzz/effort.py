"""How long the fuzz tests go on: the same sequences every time, unless the environment asks for other ones, or more.

FUZZ_SEQUENCES: so many random sequences for each test of sequences.
FUZZ_SHRINK: a sequence that fails is made smaller, which takes up to five minutes.
FUZZ_SECONDS: so long for each target of raw bytes.
"""

import os

from hypothesis import HealthCheck, Phase, settings

NUM_AT_ONCE = 8
"""Sequences of one batch, which is one example to hypothesis: they run beside each other."""

DEFAULT_SECONDS = 2.0

_num_random_sequences = int(os.environ.get("FUZZ_SEQUENCES", "0"))
_shrinks = "FUZZ_SHRINK" in os.environ

TIMEOUT_S = 0 if _num_random_sequences or _shrinks else 120
"""For pytest; 0 is for ever."""


def num_batches(num_sequences: int) -> int:
    """How many batches a test tries that tries so many sequences by default."""
    return -(-(_num_random_sequences or num_sequences) // NUM_AT_ONCE)


def sequence_settings(num_sequences: int) -> settings:
    """Hypothesis settings of a test that tries so many sequences by default."""
    return settings(
        max_examples=num_batches(num_sequences),
        derandomize=not _num_random_sequences,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink) if _shrinks else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def seconds() -> float:
    """How long to try raw bytes."""
    return float(os.environ.get("FUZZ_SECONDS", DEFAULT_SECONDS))
