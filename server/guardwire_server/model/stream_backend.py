"""The stream model as the engine sees it: a plan in, verdicts out."""

from array import array

import numpy as np
import torch

from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import RiskLevel, VerdictArrays
from guardwire_server.engine.backend import StreamReadings
from guardwire_server.model.backbone import Stepper, read_rows
from guardwire_server.model.stream_guard import StreamGuard


class TorchStreamBackend:
    """Implements engine.backend.StreamBackend. Owner and thread: the device thread."""

    def __init__(self, guard: StreamGuard, backbone: Stepper) -> None:
        """Takes over a loaded model and what steps through its backbone.

        On a CPU the heads go on in float32: they are next to nothing beside the backbone, and oneDNN, which computes
        products in bfloat16, compiles and keeps code for every number of rows that it meets.
        """
        if guard.risk_level_head.weight.device.type == "cpu":
            guard.widen_heads()
        self._guard = guard
        self._backbone = backbone

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StreamReadings:
        """Runs one step; the only waits for the device are the reads of the verdicts at its end."""
        hidden = self._backbone.step(plan)
        responses = self._guard.response_probabilities(read_rows(hidden, plan, Read.RESPONSE))
        queries = self._guard.query_probabilities(read_rows(hidden, plan, Read.QUERY))
        return StreamReadings(responses=pack_verdicts(*responses), queries=pack_verdicts(*queries))


def pack_verdicts(risk: torch.Tensor, category: torch.Tensor) -> VerdictArrays:
    """Packs probabilities: risk float32 [N, 3] in rising order of harm, category float32 [N, 9] in Category's order.

    Each token's level is the most probable one, between equals the more harmful one.
    """
    risk_host, category_host = risk.cpu().numpy(), category.cpu().numpy()
    levels = (3 - np.argmax(risk_host[:, ::-1], axis=1)).astype(np.uint8)
    is_risky = levels != RiskLevel.SAFE
    best = np.argmax(category_host, axis=1)
    best_probability = category_host[np.arange(len(best)), best] * is_risky
    return VerdictArrays(
        risk_levels=array("B", levels.tobytes()),
        probabilities=array("f", risk_host.astype(np.float32).tobytes()),
        categories=array("B", ((best + 1) * is_risky).astype(np.uint8).tobytes()),
        category_probabilities=array("f", best_probability.astype(np.float32).tobytes()),
    )
