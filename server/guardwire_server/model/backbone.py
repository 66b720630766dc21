"""Steps of a Qwen3 backbone over an arena, through transformers' own model code.

The model's layers come from transformers, so what they compute is what the reference computes; only attention is ours
(ragged_attention). This is the place for a faster forward over the same weights.
"""

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3Model

from guardwire_server.core.scheduler import Read, StepPlan
from guardwire_server.model.packed_linear import pack_linears
from guardwire_server.model.ragged_attention import ATTENTION_NAME, KvTensors, build_batch, num_kv_heads


class Backbone:
    """A backbone with its arena. Owner and thread: one backend, on the device thread."""

    def __init__(self, model: Qwen3Model, num_slots: int) -> None:
        """Takes over a loaded model.

        Args:
            model: In evaluation mode, on its device, in its dtype.
            num_slots: Token slots of the arena.
        """
        config: Qwen3Config = model.config
        model.set_attn_implementation(ATTENTION_NAME)
        weight = model.embed_tokens.weight
        pack_linears(model)
        self._model = model
        self._num_groups = config.num_attention_heads // num_kv_heads(config)
        self.kv = KvTensors(config, num_slots, weight.device, weight.dtype)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> torch.Tensor:
        """Runs one step: copies, then one forward over all chunks.

        Returns:
            Hidden states [T, H] after the final norm, in the order of the chunks' tokens.
        """
        for move in plan.copies:
            self.kv.copy(move)
        batch = build_batch(plan, self.kv, self._num_groups)
        output = self._model(
            input_ids=batch.ids.unsqueeze(0),
            position_ids=batch.positions.unsqueeze(0),
            attention_mask={"full_attention": None},
            use_cache=False,
            batch=batch,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


def rows_to_read(plan: StepPlan, read: Read) -> torch.Tensor:
    """The rows, int64, of a step's hidden states whose tokens carry that Read code."""
    reads = np.frombuffer(b"".join(chunk.reads for chunk in plan.chunks), dtype=np.uint8)
    return torch.from_numpy(np.flatnonzero(reads == read))
