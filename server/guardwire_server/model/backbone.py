"""Steps of a Qwen3 backbone over an arena, through transformers' own model code.

The model's layers come from transformers, so what they compute is what the reference computes; only attention is ours
(ragged_attention). On a CPU a forward of our own runs instead where it can (native_forward), on a GPU another backbone
(cuda_backbone).
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3Model

from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.model.native_forward import native_forward
from guardwire_server.model.native_kernels import NativeKernels
from guardwire_server.model.packed_linear import pack_linears
from guardwire_server.model.ragged_attention import ATTENTION_NAME, KvTensors, RaggedBatch, build_batch, num_kv_heads


class Stepper(Protocol):
    """A backbone with its arena `kv`. Owner and thread: one backend, on the device thread."""

    kv: KvTensors

    def step(self, plan: StepPlan) -> torch.Tensor:
        """Runs one step: copies, then one forward over all chunks.

        Returns:
            Hidden states [T, H] after the final norm, in the order of the chunks' tokens; valid until the next step.
        """
        ...


class ModelForward:
    """transformers' own layers over the arena: for every device and every shape."""

    def __init__(self, model: Qwen3Model) -> None:
        """Takes over a model."""
        model.set_attn_implementation(ATTENTION_NAME)
        pack_linears(model)
        self._model = model

    def __call__(self, batch: RaggedBatch) -> torch.Tensor:
        """Hidden states [T, H] after the final norm; keys and values go into the batch's arena."""
        output = self._model(
            input_ids=batch.ids.unsqueeze(0),
            position_ids=batch.positions.unsqueeze(0),
            attention_mask={"full_attention": None},
            use_cache=False,
            batch=batch,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden


class Backbone:
    """Implements Stepper for every device and every shape. Owner and thread: one backend, on the device thread."""

    def __init__(
        self,
        model: Qwen3Model,
        num_slots: int,
        kernels: NativeKernels | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Takes over a loaded model.

        Args:
            model: In evaluation mode, on its device, in its dtype.
            num_slots: Token slots of the arena.
            kernels: To compute with on a CPU, if the model's shapes fit them; None: torch alone.
            kv_dtype: What keys and values are kept in; None: the model's.
        """
        config: Qwen3Config = model.config
        weight = model.embed_tokens.weight
        kv_dtype = kv_dtype or weight.dtype
        native = native_forward(model, kernels, kv_dtype) if kernels else None
        self._forward: Callable[[RaggedBatch], torch.Tensor] = native or ModelForward(model)
        # Only torch's attention reads masks.
        self._num_groups = None if native else config.num_attention_heads // num_kv_heads(config)
        self.kv = KvTensors(config, num_slots, weight.device, kv_dtype)

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> torch.Tensor:
        """As in Stepper."""
        for move in plan.copies:
            self.kv.copy(move)
        return self._forward(build_batch(plan, self.kv, self._num_groups))


def read_rows(hidden: torch.Tensor, plan: StepPlan, read: Read) -> torch.Tensor:
    """The rows [R, H] of a step's hidden states whose tokens carry that Read code; the host waits for nothing."""
    rows = rows_to_read(plan, read)
    if hidden.device.type == "cuda":  # where a copy from memory that is not pinned waits for the device
        rows = rows.pin_memory().to(hidden.device, non_blocking=True)
    return hidden[rows]


def rows_to_read(plan: StepPlan, read: Read) -> torch.Tensor:
    """The rows, int64, of a step's hidden states whose tokens carry that Read code."""
    reads = np.frombuffer(b"".join(chunk.reads for chunk in plan.chunks), dtype=np.uint8)
    return torch.from_numpy(np.flatnonzero(reads == read))
