"""A slim Qwen3 forward over an arena, on the CPU.

It leaves out what a server does not need: masks, caches of its own, a module call for every norm. What it computes is
what transformers' Qwen3Model computes, which the tests hold it to. Two forms: all layers in one call of the kernels,
where they take all of the weights, as those of the published checkpoints; and layer by layer, where some products are
better left to oneDNN (projections.py says when).

Shapes as in ragged_attention.py; H hidden size.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import embedding
from transformers import Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from guardwire_server.model.native_kernels import DTYPE_PAIRS, NativeKernels
from guardwire_server.model.native_layers import LayerStack, LayerWeights
from guardwire_server.model.projections import GatedPair, Projection, gated_pair, projection
from guardwire_server.model.ragged_attention import RaggedBatch, num_kv_heads


def native_forward(
    model: Qwen3Model, kernels: NativeKernels, kv_dtype: torch.dtype
) -> Callable[[RaggedBatch], torch.Tensor] | None:
    """Takes over a model and gives what runs it; None, and the model as it was, if it is none for the kernels."""
    if not can_run(model, kernels, kv_dtype):
        return None
    return WholeForward(model, kernels) if _fits_panels(model, kernels) else LayeredForward(model, kernels)


def can_run(model: Qwen3Model, kernels: NativeKernels, kv_dtype: torch.dtype) -> bool:
    """Whether the kernels take a model of these shapes, these dtypes and this activation."""
    config, weight = model.config, model.embed_tokens.weight
    return (
        weight.device.type == "cpu"
        and (weight.dtype, kv_dtype) in DTYPE_PAIRS
        and config.hidden_act == "silu"
        and not config.attention_bias
        and config.hidden_size % kernels.lanes == 0
        and config.head_dim % (2 * kernels.lanes) == 0
        and config.num_attention_heads % num_kv_heads(config) == 0
    )


def _fits_panels(model: Qwen3Model, kernels: NativeKernels) -> bool:
    return all(
        kernels.can_pack(_qkv(layer))
        and kernels.can_pack(layer.self_attn.o_proj.weight)
        and kernels.can_pack(layer.mlp.gate_proj.weight, gated=True)
        and kernels.can_pack(layer.mlp.up_proj.weight, gated=True)
        and kernels.can_pack(layer.mlp.down_proj.weight)
        for layer in _layers(model)
    )


def _layers(model: Qwen3Model) -> list[Qwen3DecoderLayer]:
    return [layer for layer in model.layers if isinstance(layer, Qwen3DecoderLayer)]


def _qkv(layer: Qwen3DecoderLayer) -> torch.Tensor:
    attention = layer.self_attn
    return torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])


class _Frame:
    """What surrounds the layers: embedding, rotation, final norm."""

    def __init__(self, model: Qwen3Model, kernels: NativeKernels) -> None:
        self.eps = float(model.config.rms_norm_eps)
        self.scale = float(model.config.head_dim) ** -0.5
        self._kernels = kernels
        self._embedding = model.embed_tokens.weight
        self._rotary = model.rotary_emb
        self._norm = model.norm.weight

    def embed(self, batch: RaggedBatch) -> torch.Tensor:
        """[T, H]."""
        return embedding(batch.ids, self._embedding)

    def normalise(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H]."""
        return self._kernels.rms_norm(x, self._norm, self.eps)

    def rotation(self, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, D / 2], float32; the two halves of what the model gives are equal."""
        whole = torch.empty((), dtype=torch.float32)
        cosines, sines = self._rotary(whole, batch.positions.unsqueeze(0))
        half = cosines.shape[-1] // 2
        return cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()


def _segments(batch: RaggedBatch) -> torch.Tensor:
    """As the kernels read them, int64 [M, 4]."""
    rows = [(segment.slot, segment.past, segment.begin, segment.end) for segment in batch.segments]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


class WholeForward:
    """All layers in one call. Owner and thread: one Backbone, on the device thread. Immutable."""

    def __init__(self, model: Qwen3Model, kernels: NativeKernels) -> None:
        """Takes over a model's weights, layer by layer, so that they are never there twice."""
        self._kernels = kernels
        self._frame = _Frame(model, kernels)
        self._intermediate_size = model.config.intermediate_size
        layers: list[LayerWeights] = []
        while len(model.layers):
            (layer, *_) = _layers(model)
            attention, mlp = layer.self_attn, layer.mlp
            weights = LayerWeights(
                qkv=kernels.pack(_qkv(layer)),
                attention_output=kernels.pack(attention.o_proj.weight),
                gate_up=kernels.pack(mlp.gate_proj.weight, mlp.up_proj.weight),
                mlp_output=kernels.pack(mlp.down_proj.weight),
                input_norm=layer.input_layernorm.weight.float(),
                query_norm=attention.q_norm.weight.float(),
                key_norm=attention.k_norm.weight.float(),
                output_norm=layer.post_attention_layernorm.weight.float(),
            )
            layers.append(weights)
            del model.layers[0]
        self._stack = LayerStack(layers)

    def __call__(self, batch: RaggedBatch) -> torch.Tensor:
        """Hidden states [T, H] after the final norm; keys and values go into the batch's arena."""
        embedded = self._frame.embed(batch)
        x = embedded.float()
        self._kernels.run_layers(
            self._stack,
            x,
            self._frame.rotation(batch),
            batch.slots,
            _segments(batch),
            batch.kv.keys,
            batch.kv.values,
            intermediate_size=self._intermediate_size,
            eps=self._frame.eps,
            scale=self._frame.scale,
        )
        return self._frame.normalise(x.to(embedded.dtype))


class _Layer:
    """One decoder layer's weights in the layouts of their products."""

    def __init__(self, layer: Qwen3DecoderLayer, kernels: NativeKernels) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm = layer.input_layernorm.weight
        self.output_norm = layer.post_attention_layernorm.weight
        self.head_norms = (attention.q_norm.weight, attention.k_norm.weight)
        self.qkv: Projection = projection(_qkv(layer), kernels)
        self.attention_output: Projection = projection(attention.o_proj.weight, kernels)
        self.gate_up: GatedPair = gated_pair(mlp.gate_proj.weight, mlp.up_proj.weight, kernels)
        self.mlp_output: Projection = projection(mlp.down_proj.weight, kernels)


class LayeredForward:
    """Four products and four kernels a layer. Owner and thread: one Backbone, on the device thread. Immutable."""

    def __init__(self, model: Qwen3Model, kernels: NativeKernels) -> None:
        """Takes over a model's weights, layer by layer, so that they are never there twice."""
        self._kernels = kernels
        self._frame = _Frame(model, kernels)
        self._layers: list[_Layer] = []
        while len(model.layers):
            (layer, *_) = _layers(model)
            self._layers.append(_Layer(layer, kernels))
            del model.layers[0]

    def __call__(self, batch: RaggedBatch) -> torch.Tensor:
        """Hidden states [T, H] after the final norm; keys and values go into the batch's arena."""
        kernels, eps = self._kernels, self._frame.eps
        x, rotation, segments = self._frame.embed(batch), self._frame.rotation(batch), _segments(batch)
        for index, layer in enumerate(self._layers):
            keys, values = batch.kv.keys[index], batch.kv.values[index]
            qkv = layer.qkv(kernels.rms_norm(x, layer.input_norm, eps))
            query = kernels.prepare(qkv, layer.head_norms, rotation, batch.slots, keys, values, eps)
            attended = torch.empty(len(query), query[0].numel(), dtype=x.dtype)
            kernels.attend(query, keys, values, segments, self._frame.scale, attended)
            x = layer.attention_output.add(attended, x)
            x = layer.mlp_output.add(layer.gate_up(kernels.rms_norm(x, layer.output_norm, eps)), x)
        return self._frame.normalise(x)
