"""What the CPU kernels read of a model, laid out as they read it: weights in panels, and the structures of kernels/."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_POINTER, _INT64, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Heads(ctypes.Structure):
    """Heads of kernels/norms.h."""

    _fields_ = (
        *((name, _INT64) for name in ("queries", "kv", "dim", "head_stride")),
        *((name, _FLOAT) for name in ("eps", "scale")),
    )


class Shape(ctypes.Structure):
    """Shape of kernels/layers.h."""

    _fields_ = (
        *((name, _INT64) for name in ("num_layers", "hidden", "intermediate", "layer_stride")),
        ("heads", Heads),
    )


class Batch(ctypes.Structure):
    """Batch of kernels/layers.h."""

    _fields_ = (
        *((name, _INT64) for name in ("rows", "num_segments")),
        *((name, _POINTER) for name in ("slots", "segments", "cosines", "sines")),
    )


@dataclass(frozen=True)
class Panels:
    """A weight, or a gated pair, in the layout of kernels/linear.h for products in the arithmetic of `dtype`.

    `words`, int32, each hold two weights in bfloat16.
    """

    words: torch.Tensor
    dtype: torch.dtype

    @property
    def num_weights(self) -> int:
        """How many numbers the weight has."""
        return 2 * self.words.numel()

    def data_ptr(self) -> int:
        """As of a tensor."""
        return self.words.data_ptr()


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights: panels of one dtype, and norms [H] or [D], float32; in the order of kernels/layers.h."""

    qkv: Panels
    attention_output: Panels
    gate_up: Panels
    mlp_output: Panels
    input_norm: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    output_norm: torch.Tensor


class LayerStack:
    """All layers' weights, and the table of pointers to them that the kernels read. Immutable."""

    def __init__(self, layers: Sequence[LayerWeights]) -> None:
        """Keeps the layers alive."""
        self.layers = tuple(layers)
        self.table = torch.tensor([[weight.data_ptr() for weight in vars(layer).values()] for layer in layers])
        self.dtype = layers[0].qkv.dtype
