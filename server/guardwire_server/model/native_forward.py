"""A slim Qwen3 forward over an arena, on the CPU: four products and four kernels a layer, and nothing else.

It computes what transformers' Qwen3Model computes (which the tests hold it to), without what a server does not need:
masks, caches of its own, a module call for every norm. The products are chosen by what the weights and the processor
allow, see projections.py.

Shapes as in ragged_attention.py; H hidden size.
"""

import torch
from torch.nn.functional import embedding
from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from guardwire_server.model.native_kernels import NativeKernels
from guardwire_server.model.projections import GatedPair, Projection, gated_pair, projection
from guardwire_server.model.ragged_attention import RaggedBatch, Segment, attend_segment, num_kv_heads

MAX_NATIVE_ROWS = 16
"""Segments of up to so many new tokens go to the native attention, which reads the keys once for each token; longer
ones to torch's, which reads them once for all."""


class _Layer:
    """One decoder layer's weights in the layouts of the kernels."""

    def __init__(self, layer: Qwen3DecoderLayer, kernels: NativeKernels) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight
        self.output_norm = layer.post_attention_layernorm.weight
        self.head_norms = (attention.q_norm.weight, attention.k_norm.weight)
        merged = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        self.qkv: Projection = projection(merged, kernels)
        self.attention_output: Projection = projection(attention.o_proj.weight, kernels)
        self.gate_up: GatedPair = gated_pair(mlp.gate_proj.weight, mlp.up_proj.weight, kernels)
        self.mlp_output: Projection = projection(mlp.down_proj.weight, kernels)


class NativeForward:
    """Runs a backbone. Owner and thread: one Backbone, on the device thread. Immutable."""

    def __init__(self, model: Qwen3Model, kernels: NativeKernels) -> None:
        """Takes over a model's weights, layer by layer, so that they are never there twice."""
        config = model.config
        self._kernels = kernels
        self._eps = float(config.rms_norm_eps)
        self._embedding = model.embed_tokens.weight
        self._rotary = model.rotary_emb
        self._norm = model.norm.weight
        self._scale = float(config.head_dim) ** -0.5
        self._layers: list[_Layer] = []
        while len(model.layers):
            layer = model.layers[0]
            assert isinstance(layer, Qwen3DecoderLayer)
            self._layers.append(_Layer(layer, kernels))
            del model.layers[0]

    def __call__(self, batch: RaggedBatch) -> torch.Tensor:
        """Hidden states [T, H] after the final norm; keys and values go into the batch's arena."""
        kernels, eps = self._kernels, self._eps
        x = embedding(batch.ids, self._embedding)
        cosines, sines = self._rotation(batch)
        short, long = _divide(batch.segments)
        for index, layer in enumerate(self._layers):
            keys, values = batch.kv.keys[index], batch.kv.values[index]
            qkv = layer.qkv(kernels.rms_norm(x, layer.input_norm, eps))
            query = kernels.prepare(qkv, layer.head_norms, (cosines, sines), batch.slots, keys, values, eps)
            attended = torch.empty(len(query), query[0].numel(), dtype=x.dtype)
            if len(short):
                kernels.attend(query, keys, values, short, self._scale, attended)
            for segment in long:
                rows = slice(segment.begin, segment.end)
                heads = query[rows].transpose(0, 1).to(x.dtype)
                attended[rows] = attend_segment(heads, keys, values, segment, self._scale)
            x = layer.attention_output.add(attended, x)
            x = layer.mlp_output.add(layer.gate_up(kernels.rms_norm(x, layer.output_norm, eps)), x)
        return kernels.rms_norm(x, self._norm, eps)

    def _rotation(self, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, D / 2], float32; the two halves of what the model gives are equal."""
        whole = torch.empty((), dtype=torch.float32)
        cosines, sines = self._rotary(whole, batch.positions.unsqueeze(0))
        half = cosines.shape[-1] // 2
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()


def can_run(model: Qwen3Model, kernels: NativeKernels) -> bool:
    """Whether the kernels take a model of these shapes, this dtype and this activation."""
    config, weight = model.config, model.embed_tokens.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and config.hidden_act == "silu"
        and not config.attention_bias
        and config.hidden_size % kernels.lanes == 0
        and config.head_dim % (2 * kernels.lanes) == 0
        and config.num_attention_heads % num_kv_heads(config) == 0
    )


def _divide(segments: tuple[Segment, ...]) -> tuple[torch.Tensor, list[Segment]]:
    """The short segments as the kernel reads them, int64 [M, 4], and the long ones."""
    short = [
        (segment.slot, segment.past, segment.begin, segment.end)
        for segment in segments
        if segment.end - segment.begin <= MAX_NATIVE_ROWS
    ]
    long = [segment for segment in segments if segment.end - segment.begin > MAX_NATIVE_ROWS]
    return torch.tensor(short, dtype=torch.int64).reshape(-1, 4), long
