"""Linear layers, each over the layout that is fastest for its weights where they are.

- Panels (kernels/linear.h): weights kept in bfloat16, which the published checkpoints are stored in, under activations
  in float32 or bfloat16. Nothing is lost against float32 weights, while half the memory is read for every token.
- oneDNN's packed layout: for float32 weights that bfloat16 cannot hold, and on processors with matrix units for
  bfloat16.
- The plain layout everywhere else.

Shapes: T rows, I input features, O output features.
"""

from typing import Protocol

import torch
from torch.nn.functional import linear, silu

from guardwire_server.model.native_kernels import Epilogue, NativeKernels
from guardwire_server.model.packed_linear import can_pack, pack


class Projection(Protocol):
    """A linear layer without bias. Immutable."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, I] to [T, O]."""
        ...

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product plus `residual` [T, O], which may be overwritten."""
        ...


class GatedPair(Protocol):
    """The first half of a gated MLP: silu(x Wgate^T) * (x Wup^T). Immutable."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [T, I] to [T, O]."""
        ...


def projection(weight: torch.Tensor, kernels: NativeKernels | None) -> Projection:
    """The fastest layout for a weight [O, I]."""
    if kernels and kernels.can_pack(weight):
        return _PanelProjection(weight, kernels)
    return _PackedProjection(weight) if can_pack(weight) else _PlainProjection(weight)


def gated_pair(gate: torch.Tensor, up: torch.Tensor, kernels: NativeKernels | None) -> GatedPair:
    """The fastest layout for a pair of weights [O, I]."""
    if kernels and kernels.can_pack(gate, gated=True) and kernels.can_pack(up, gated=True):
        return _PanelGatedPair(gate, up, kernels)
    return _PackedGatedPair(gate, up) if can_pack(gate) else _PlainGatedPair(gate, up)


class _PanelProjection:
    def __init__(self, weight: torch.Tensor, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._num_outputs = len(weight)
        self._panels = kernels.pack(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), self._num_outputs)
        return self._kernels.linear(self._panels, x.float(), out, Epilogue.STORE).to(x.dtype)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self._kernels.linear(self._panels, x.float(), residual.float(), Epilogue.ADD).to(x.dtype)


class _PanelGatedPair:
    def __init__(self, gate: torch.Tensor, up: torch.Tensor, kernels: NativeKernels) -> None:
        self._kernels = kernels
        self._num_outputs = len(gate)
        self._panels = kernels.pack(gate, up)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.empty(len(x), self._num_outputs)
        return self._kernels.linear(self._panels, x.float(), out, Epilogue.GATE).to(x.dtype)


class _PackedProjection:
    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = pack(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return product

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, None, "add")
        return total


class _PackedGatedPair:
    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self._gate, self._up = pack(gate), pack(up)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.ops.mkldnn._linear_pointwise(x, self._gate, None, "swish", [], "")
        gated: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gate, self._up, None, "mul")
        return gated


class _PlainProjection:
    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self._weight)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return residual + linear(x, self._weight)


class _PlainGatedPair:
    def __init__(self, gate: torch.Tensor, up: torch.Tensor) -> None:
        self._gate, self._up = gate, up

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return silu(linear(x, self._gate)) * linear(x, self._up)
