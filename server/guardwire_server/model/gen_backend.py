"""The generative model as the engine sees it: a plan in, next tokens and verdict probabilities out."""

from array import array
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.engine.backend import GenReadings
from guardwire_server.model.backbone import Stepper, read_rows
from guardwire_server.model.native_kernels import NativeKernels
from guardwire_server.model.projections import projection


class TorchGenBackend:
    """Implements engine.backend.GenBackend. Owner and thread: the device thread."""

    def __init__(
        self,
        backbone: Stepper,
        lm_head: torch.Tensor,
        *,
        end_ids: frozenset[int],
        verdict_prefix: Sequence[int],
        verdict_ids: tuple[int, int, int],
        likely_answers: Mapping[bool, Sequence[tuple[int, ...]]],
        kernels: NativeKernels | None = None,
    ) -> None:
        """Takes over a loaded model.

        Args:
            backbone: What steps through its backbone.
            lm_head: [vocabulary, H], the embedding itself when they are tied.
            end_ids: Tokens that end an answer.
            verdict_prefix: What an answer begins with up to the verdict's word.
            verdict_ids: The tokens that begin the words Safe, Controversial and Unsafe there.
            likely_answers: As in engine.backend.GenBackend.
            kernels: As in Backbone.
        """
        self._backbone = backbone
        self._lm_head = projection(lm_head, kernels)
        self._verdict_ids = torch.tensor(verdict_ids, device=lm_head.device)
        self.end_ids = end_ids
        self.likely_answers = likely_answers
        self.verdict_prefix = tuple(verdict_prefix)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> GenReadings:
        """Runs one step. The highest logit wins, the lowest id between equals, as in transformers' greedy search."""
        hidden = read_rows(self._backbone.step(plan), plan, Read.LOGITS)
        logits = self._lm_head(hidden).float()
        verdict = torch.softmax(logits[:, self._verdict_ids], dim=-1)
        return GenReadings(
            next_ids=array("i", logits.argmax(dim=-1).cpu().numpy().astype(np.int32).tobytes()),
            verdict_probabilities=array("f", verdict.cpu().numpy().tobytes()),
        )
