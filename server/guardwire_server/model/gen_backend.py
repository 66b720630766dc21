"""The generative model as the engine sees it: a plan in, next tokens and verdict probabilities out."""

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import linear
from transformers import Qwen3Model

from guardwire_server.core.scheduler import Read, StepPlan
from guardwire_server.engine.backend import GenReadings
from guardwire_server.model.backbone import Backbone, rows_to_read


class TorchGenBackend:
    """Implements engine.backend.GenBackend. Owner and thread: the device thread."""

    def __init__(
        self,
        model: Qwen3Model,
        lm_head: torch.Tensor,
        num_slots: int,
        *,
        end_ids: frozenset[int],
        verdict_prefix: Sequence[int],
        verdict_ids: tuple[int, int, int],
    ) -> None:
        """Takes over a loaded model.

        Args:
            model: The backbone, in evaluation mode.
            lm_head: [vocabulary, H], the embedding itself when they are tied.
            num_slots: Token slots of the arena.
            end_ids: Tokens that end an answer.
            verdict_prefix: What an answer begins with up to the verdict's word.
            verdict_ids: The tokens that begin the words Safe, Controversial and Unsafe there.
        """
        self._backbone = Backbone(model, num_slots)
        self._lm_head = lm_head
        self._verdict_ids = torch.tensor(verdict_ids, device=lm_head.device)
        self.end_ids = end_ids
        self.verdict_prefix = tuple(verdict_prefix)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> GenReadings:
        """Runs one step. The highest logit wins, the lowest id between equals, as in transformers' greedy search."""
        hidden = self._backbone.step(plan)[rows_to_read(plan, Read.LOGITS)]
        logits = linear(hidden, self._lm_head).float()
        verdict = torch.softmax(logits[:, self._verdict_ids], dim=-1)
        return GenReadings(
            next_ids=array("i", logits.argmax(dim=-1).cpu().numpy().astype(np.int32).tobytes()),
            verdict_probabilities=array("f", verdict.cpu().numpy().tobytes()),
        )
