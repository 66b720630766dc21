"""A slim Qwen3 forward for a GPU: fixed shapes, no host synchronisation, one attention for all sequences of a step.

It computes what transformers' Qwen3Model computes (which the tests hold it to). Attention is FlashAttention-2 as
PyTorch brings it: with the whole arena as keys and values, arbitrary starts in it and the number of keys that count, it
does a ragged extend over contiguous extents without a page table, and a rollback is a smaller number. It takes the
arena in any strides, so the layout is the CPU's, in which each head's keys of an extent lie together.
Source: `mha_varlen_fwd` in PyTorch's aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp; `BlockInfo` and
`set_params_fprop` say how starts, lengths and strides are used.

Shapes: T tokens, M pieces (cuda_batch.py), H hidden size, N query heads, K key-value heads, D head dimension, S slots
of the arena.
"""

from typing import Protocol, cast

import torch
from torch.nn.functional import embedding, linear, rms_norm, silu
from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from guardwire_server.model.cuda_batch import StepInputs
from guardwire_server.model.ragged_attention import KvTensors, num_kv_heads

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_CAPABILITY = (8, 0)
MAX_FLASH_HEAD_DIM = 256
"""What FlashAttention-2 is made for. Source: the checks of `mha_varlen_fwd`."""

_VARYING_ROPE = ("dynamic", "longrope")
"""Rotations whose frequencies depend on how long a sequence is, and not on each token's position alone."""


class FlashAttention(Protocol):
    """The part of `torch.ops.aten._flash_attention_forward` that is used here; its first result is the output."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cum_seq_q: torch.Tensor,
        cum_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float,
        seqused_k: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Attends.

        Args:
            query: [T, N, D].
            key: [S, K, D]; `value` likewise.
            value: [S, K, D].
            cum_seq_q: int32 [M + 1], where each piece's queries begin, then their end.
            cum_seq_k: int32 [M + 1], where each piece's keys begin.
            max_q: Most queries of a piece. 1: every piece has exactly one.
            max_k: Most keys of a piece.
            dropout_p: 0.
            is_causal: A piece's queries are its last tokens, and each sees the keys up to its own.
            return_debug_mask: False.
            scale: What scores are multiplied by.
            seqused_k: int32 [M], how many keys each piece has.
        """
        ...


class _Layer:
    """One decoder layer's weights, those that take the same input in one matrix."""

    def __init__(self, layer: Qwen3DecoderLayer, num_heads: int, num_kv_heads: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight
        self.output_norm = layer.post_attention_layernorm.weight
        self.head_norms = torch.cat(
            [attention.q_norm.weight.expand(num_heads, -1), attention.k_norm.weight.expand(num_kv_heads, -1)]
        )
        self.qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        self.attention_output = attention.o_proj.weight.T
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.mlp_output = mlp.down_proj.weight.T


class CudaForward:
    """Runs a backbone over an arena. Owner and thread: one CudaBackbone, on the device thread. Immutable."""

    def __init__(self, model: Qwen3Model, attention: FlashAttention | None = None) -> None:
        """Takes over a model's weights, layer by layer, so that they are never there twice.

        Args:
            model: In evaluation mode, on its device, in its dtype; `unfit` says for which this works.
            attention: What attends; None: PyTorch's FlashAttention-2.
        """
        config = model.config
        self._attention = attention or flash_attention()
        self._eps = float(config.rms_norm_eps)
        self._head_dim = int(config.head_dim)
        self._num_heads, self._num_kv_heads = int(config.num_attention_heads), num_kv_heads(config)
        self._scale = self._head_dim**-0.5
        self._embedding = model.embed_tokens.weight.detach()
        self._rotary = model.rotary_emb
        self._norm = model.norm.weight.detach()
        self._layers: list[_Layer] = []
        with torch.no_grad():
            while len(model.layers):
                layer = model.layers[0]
                assert isinstance(layer, Qwen3DecoderLayer)
                self._layers.append(_Layer(layer, self._num_heads, self._num_kv_heads))
                del model.layers[0]

    def __call__(self, inputs: StepInputs[torch.Tensor], kv: KvTensors) -> torch.Tensor:
        """Hidden states [T, H] after the final norm; keys and values go into the arena."""
        width = self._embedding.shape[1:]
        x = embedding(inputs.ids, self._embedding)
        slots = inputs.slots.long()  # what index_copy_ takes
        rotation = self._rotation(x, inputs.positions)
        for layer, keys, values in zip(self._layers, kv.keys, kv.values, strict=True):
            qkv = linear(rms_norm(x, width, layer.input_norm, self._eps), layer.qkv)
            query, key, value = self._heads(qkv, layer.head_norms, rotation)
            keys.index_copy_(1, slots, key.transpose(0, 1))
            values.index_copy_(1, slots, value.transpose(0, 1))
            attended = attend(self._attention, query, keys, values, inputs, self._scale)
            x.addmm_(attended.flatten(1), layer.attention_output)
            gate, up = linear(rms_norm(x, width, layer.output_norm, self._eps), layer.gate_up).chunk(2, dim=1)
            x.addmm_(silu(gate).mul_(up), layer.mlp_output)
        return rms_norm(x, width, self._norm, self._eps)

    def _rotation(self, x: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, 1, D]; the first half of the sines is negated."""
        cosines, sines = (part[0].unsqueeze(1) for part in self._rotary(x, positions.unsqueeze(0)))
        first, second = sines.chunk(2, dim=-1)
        return cosines, torch.cat([-first, second], dim=-1)

    def _heads(
        self, qkv: torch.Tensor, norms: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Queries [T, N, D] and keys [T, K, D], normalised and rotated, and values [T, K, D]."""
        cosines, sines = rotation
        heads = qkv.view(len(qkv), -1, self._head_dim)
        num_rotated = self._num_heads + self._num_kv_heads
        # the values are normalised too, for nothing: a part of the heads would have to be copied first
        normalised = rms_norm(heads, (self._head_dim,), eps=self._eps)[:, :num_rotated] * norms
        # transformers turns (a, b) into (a cos - b sin, b cos + a sin); the sign is in the sines here
        rotated = normalised * cosines
        rotated.addcmul_(normalised.roll(self._head_dim // 2, -1), sines)
        return rotated[:, : self._num_heads], rotated[:, self._num_heads :], heads[:, num_rotated:]


def attend(
    attention: FlashAttention,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    inputs: StepInputs[torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Lets every piece of a step attend to its own sequence's extent.

    Args:
        attention: What attends.
        query: [T, N, D], rotated.
        keys: One layer of the arena [K, S, D], the new tokens' included; `values` likewise.
        values: Of the dtype of the queries, as the keys.
        inputs: The step's.
        scale: What scores are multiplied by.

    Returns:
        [T, N, D]; arbitrary in rows that belong to no piece.
    """
    return attention(
        query,
        keys.transpose(0, 1),
        values.transpose(0, 1),
        inputs.query_starts,
        inputs.key_starts,
        inputs.bucket.max_query,
        inputs.bucket.max_keys,
        0.0,
        True,
        False,
        scale=scale,
        seqused_k=inputs.num_keys,
    )[0]


def flash_attention() -> FlashAttention:
    """PyTorch's FlashAttention-2."""
    return cast(FlashAttention, torch.ops.aten._flash_attention_forward)


def unfit(model: Qwen3Model, kv_dtype: torch.dtype) -> str | None:
    """Why CudaForward with PyTorch's FlashAttention-2 is not for a model on its device; None: it is.

    Whether the operator does what is asked of it is another question: flash_probe.py.
    """
    weight = model.embed_tokens.weight
    if weight.dtype not in FLASH_DTYPES or kv_dtype != weight.dtype:
        return f"weights in {weight.dtype} and keys in {kv_dtype}, where flash attention takes one half-precision type"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this PyTorch was built without flash attention"
    if torch.cuda.get_device_capability(weight.device) < FLASH_CAPABILITY:
        return "flash attention needs a GPU of compute capability 8.0 or higher"
    return None if has_plain_shape(model) else "the model is not a plain Qwen3"


def has_plain_shape(model: Qwen3Model) -> bool:
    """Whether CudaForward computes what this model does, attention being able to."""
    config = model.config
    return (
        config.hidden_act == "silu"
        and not config.attention_bias
        and config.sliding_window is None
        and config.head_dim % 8 == 0
        and config.head_dim <= MAX_FLASH_HEAD_DIM
        and config.num_attention_heads % num_kv_heads(config) == 0
        and model.rotary_emb.rope_type not in _VARYING_ROPE
    )
