"""The ways in which a server computes on the processor. What it says must be the same on all of them."""

from array import array
from dataclasses import dataclass
from typing import Any

import torch

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, StepPlan
from guardwire_server.model.backbone import Backbone, ModelForward
from guardwire_server.model.gen_backend import TorchGenBackend
from guardwire_server.model.native_kernels import NativeKernels, load_native_kernels
from guardwire_server.model.stream_backend import TorchStreamBackend
from tests.parity.precision import BFLOAT16, BFLOAT16_CACHE, FLOAT32, Precision
from tests.tools import skip_without


@dataclass(frozen=True)
class ComputePath:
    """By the compiled kernels or by torch alone, with activations in `dtype` over keys and values in `kv_dtype`."""

    is_native: bool
    dtype: torch.dtype
    kv_dtype: torch.dtype

    def __str__(self) -> str:
        return f"{'native' if self.is_native else 'torch'}-{_name(self.dtype)}-over-{_name(self.kv_dtype)}"

    @property
    def precision(self) -> Precision:
        """Against the oracle, and against a solo run on the same path."""
        return _PRECISIONS[self.dtype, self.kv_dtype]

    def kernels(self) -> NativeKernels | None:
        """The kernels of this path; skips the test where it needs some and they cannot be compiled."""
        if not self.is_native:
            return None
        return load_native_kernels() or skip_without("a C++ compiler (Debian: g++)")

    def settings(self) -> dict[str, Any]:
        """What makes a server take this path; skips likewise."""
        is_native = self.kernels() is not None
        return {"native_kernels": is_native, "dtype": _name(self.dtype), "kv_dtype": _name(self.kv_dtype)}

    def is_taken_by(self, backend: TorchStreamBackend | TorchGenBackend) -> bool:
        """Whether a backend computes in this way: one whose shapes do not fit the kernels quietly leaves them alone."""
        backbone = backend._backbone
        assert isinstance(backbone, Backbone)  # a GPU has another
        is_native = not isinstance(backbone._forward, ModelForward)
        ids, reads, extent = array("i", (0,)), bytes(1), Extent(0, 64)
        hidden = backbone.step(StepPlan((), (Chunk(0, 0, 0, ids, reads, extent),)))  # before anybody uses the arena
        return (is_native, hidden.dtype, backbone.kv.keys.dtype) == (self.is_native, self.dtype, self.kv_dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_PRECISIONS = {
    (torch.float32, torch.float32): FLOAT32,
    (torch.float32, torch.bfloat16): BFLOAT16_CACHE,
    (torch.bfloat16, torch.bfloat16): BFLOAT16,
}

COMPUTE_PATHS = tuple(ComputePath(is_native, *dtypes) for is_native in (True, False) for dtypes in _PRECISIONS)
