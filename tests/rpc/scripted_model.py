"""A stream model whose verdicts a test chooses: by token id for answers, by a list for prompts."""

from array import array
from collections.abc import Sequence

from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import Category, RiskLevel, VerdictArrays
from guardwire_server.engine.backend import StreamReadings

SAFE_ID, CONTROVERSIAL_ID, UNSAFE_ID = 10, 110, 210
"""Ids that are judged as their names say; so are the next 89 above each."""


class ScriptedModel:
    """Takes the place of a backend's step: ids below 100 are safe, below 200 controversial, else unsafe (Violent).

    `prompt_levels` are the verdicts on prompts in the order in which they come; then all are safe.
    """

    def __init__(self, *prompt_levels: RiskLevel) -> None:
        self._prompt_levels = list(prompt_levels)

    def __call__(self, plan: StepPlan) -> StreamReadings:
        levels: dict[int, list[RiskLevel]] = {Read.RESPONSE: [], Read.QUERY: []}
        for chunk in plan.chunks:
            for token_id, read in zip(chunk.ids, chunk.reads, strict=True):
                if read == Read.RESPONSE:
                    levels[read].append(RiskLevel(min(3, 1 + token_id // 100)))
                elif read == Read.QUERY:
                    levels[read].append(self._prompt_levels.pop(0) if self._prompt_levels else RiskLevel.SAFE)
        return StreamReadings(_pack(levels[Read.RESPONSE]), _pack(levels[Read.QUERY]))


def _pack(levels: Sequence[RiskLevel]) -> VerdictArrays:
    risky = [level is not RiskLevel.SAFE for level in levels]
    return VerdictArrays(
        risk_levels=array("B", levels),
        probabilities=array("f", (float(level is other) for level in levels for other in RiskLevel)),
        categories=array("B", (Category.VIOLENT if is_risky else 0 for is_risky in risky)),
        category_probabilities=array("f", (float(is_risky) for is_risky in risky)),
    )
