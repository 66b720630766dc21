"""How much is measured."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """`context_tokens` is where streams begin; each round adds `tokens_per_round` to every stream.

    `num_repeats` counts the repetitions of each engine measurement.
    """

    name: str
    num_streams: int
    context_tokens: int
    num_rounds: int
    tokens_per_round: int
    num_repeats: int

    def as_json(self) -> dict[str, object]:
        """For the result file."""
        return asdict(self)


FULL = Settings("full", num_streams=16, context_tokens=104, num_rounds=5, tokens_per_round=10, num_repeats=15)
QUICK = Settings("quick", num_streams=16, context_tokens=120, num_rounds=3, tokens_per_round=5, num_repeats=5)
"""Both stay around a context of 128 tokens."""
