"""`python -m tests.bench.noop_server`: the real server, all but its model: every token is safe at once.

It is `guardwire-server serve` with its flags, its thread and its scheduler; the step of the stream model alone is
replaced, so what is measured is everything around it.
"""

import sys
from array import array

from guardwire_server import cli
from guardwire_server.config import prepare_process
from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import RiskLevel, VerdictArrays
from guardwire_server.engine.backend import StreamReadings


def judge_nothing(_: object, plan: StepPlan) -> StreamReadings:
    """Takes the place of a backend's step and computes nothing."""
    reads = b"".join([chunk.reads for chunk in plan.chunks])
    return StreamReadings(_safe(reads.count(Read.RESPONSE)), _safe(reads.count(Read.QUERY)))


def _safe(num_tokens: int) -> VerdictArrays:
    """Built once for a whole step, as a model's are: what a token costs is left to the server."""
    return VerdictArrays(
        risk_levels=array("B", (RiskLevel.SAFE,)) * num_tokens,
        probabilities=array("f", (1.0, 0.0, 0.0)) * num_tokens,
        categories=array("B", (0,)) * num_tokens,
        category_probabilities=array("f", (0.0,)) * num_tokens,
    )


def main() -> int:
    """Serves until SIGTERM."""
    prepare_process()
    from guardwire_server.model.stream_backend import TorchStreamBackend  # imports torch: only once that is prepared

    TorchStreamBackend.step = judge_nothing  # type: ignore[assignment, method-assign]
    return cli.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
