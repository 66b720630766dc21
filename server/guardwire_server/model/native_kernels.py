"""The CPU kernels of kernels/, called on tensors; native_library.py compiles them.

Where there is no compiler the caller gets None and uses torch instead: same labels, more time.

Shapes as in kernels/kernels.cpp. All tensors are contiguous and on the CPU.
"""

import ctypes
from enum import IntEnum
from functools import cache
from pathlib import Path

import torch

from guardwire_server.model.checkpoint_device import processor_flags
from guardwire_server.model.native_layers import Batch, Heads, LayerStack, Panels, Shape
from guardwire_server.model.native_library import load_library

DTYPE_PAIRS = (
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
)
"""What activations and cache may be kept in. Activations in bfloat16 mean products of bfloat16 numbers, added up in
float32."""

_SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
_POINTER, _INT64, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class Epilogue(IntEnum):
    """What becomes of a product: it is stored, added to what is there, or gated: silu(first) * second."""

    STORE = 0
    ADD = 1
    GATE = 2


class NativeKernels:
    """The loaded library. Immutable; calls may come from any thread and release the GIL."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Takes a library built from kernels/."""
        self._library = library
        self.lanes = int(library.guardwire_lanes())
        library.guardwire_room.argtypes = [_POINTER, _INT64]
        library.guardwire_room.restype = _INT64
        for suffix in _SUFFIXES.values():
            self._function("rms_norm", suffix).argtypes = [_POINTER, _POINTER, _INT64, _INT64, _FLOAT, _POINTER]
            self._function("pack", suffix).argtypes = [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT]
            self._function("linear", suffix).argtypes = [_POINTER, _POINTER, *[_INT64] * 3, _INT, _POINTER, _INT]
        for pair in DTYPE_PAIRS:
            self._function("prepare", _suffix(*pair)).argtypes = [*[_POINTER] * 7, _INT64, *[_POINTER] * 3, _INT]
            self._function("attend", _suffix(*pair)).argtypes = [*[_POINTER] * 5, _INT64, _POINTER, _INT]
            self._function("layers", _suffix(*pair)).argtypes = [*[_POINTER] * 7, _INT]

    def _function(self, name: str, suffix: str) -> "ctypes._NamedFuncPointer":
        return getattr(self._library, f"guardwire_{name}_{suffix}")  # type: ignore[no-any-return]

    def can_pack(self, weight: torch.Tensor, *, gated: bool = False) -> bool:
        """Whether the kernels take a weight [O, I]: of a fitting shape, in bfloat16 or exact in it.

        Where the processor has matrix units for bfloat16, which the kernels do not use, such weights are oneDNN's.
        """
        outputs, inputs = weight.shape
        panel = self.lanes if gated else 2 * self.lanes
        return (
            weight.device.type == "cpu"
            and weight.dtype in _SUFFIXES
            and not (weight.dtype == torch.bfloat16 and "amx_bf16" in processor_flags())
            and outputs % panel == 0
            and inputs % self.lanes == 0
            and torch.equal(weight.bfloat16().to(weight.dtype), weight)
        )

    def pack(self, weight: torch.Tensor, up: torch.Tensor | None = None) -> Panels:
        """Lays out a weight [O, I] for `linear`; with `up`, of the same shape and dtype, as the gated pair."""
        outputs, inputs = weight.shape
        first = weight.to(torch.bfloat16).contiguous()
        second = None if up is None else up.to(torch.bfloat16).contiguous()
        words = torch.empty(outputs * inputs // (1 if up is not None else 2), dtype=torch.int32)
        self._function("pack", _SUFFIXES[weight.dtype])(
            first.data_ptr(),
            None if second is None else second.data_ptr(),
            outputs,
            inputs,
            words.data_ptr(),
            torch.get_num_threads(),
        )
        return Panels(words, weight.dtype)

    def linear(self, panels: Panels, x: torch.Tensor, out: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
        """Maps x [T, I], float32, rounded to the panels' dtype, to out [T, O], float32; returns `out`."""
        self._function("linear", _SUFFIXES[panels.dtype])(
            panels.data_ptr(), x.data_ptr(), *x.shape, out.shape[1], epilogue, out.data_ptr(), torch.get_num_threads()
        )
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalises the rows of x [T, H]."""
        out = torch.empty_like(x)
        self._function("rms_norm", _SUFFIXES[x.dtype])(x.data_ptr(), weight.data_ptr(), *x.shape, eps, out.data_ptr())
        return out

    def prepare(
        self,
        qkv: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor],
        rotation: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """Normalises and rotates queries and keys, and writes keys and values into the arena.

        Args:
            qkv: [T, (N + 2 K) D].
            norms: Weights [D] of the query norm and the key norm.
            rotation: Cosines and sines [T, D / 2], float32.
            slots: Where each token belongs in the arena, int64 [T].
            keys: One layer of the arena [K, S, D]; with qkv's dtype one of DTYPE_PAIRS.
            values: Likewise.
            eps: Of the norms.

        Returns:
            Queries [T, N, D], float32.
        """
        num_tokens, (num_kv_heads, _, dim) = len(qkv), keys.shape
        query = torch.empty(num_tokens, qkv.shape[1] // dim - 2 * num_kv_heads, dim)
        self._function("prepare", _suffix(qkv.dtype, keys.dtype))(
            ctypes.byref(_heads(query.shape[1], keys, eps=eps)),
            qkv.data_ptr(),
            *(weight.data_ptr() for weight in norms),
            *(part.data_ptr() for part in rotation),
            slots.data_ptr(),
            num_tokens,
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            torch.get_num_threads(),
        )
        return query

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        segments: torch.Tensor,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """Lets every segment's tokens attend to its own extent, each to itself and what came before.

        Args:
            query: [T, N, D], float32.
            keys: One layer of the arena [K, S, D]; `values` likewise.
            values: Of the dtype of `keys`.
            segments: int64 [M, 4]: first slot, cached tokens, first row and one past the last row of each segment.
            scale: What scores are multiplied by.
            out: [T, N D], of the dtype of the activations; rows of no segment are left alone.
        """
        self._function("attend", _suffix(out.dtype, keys.dtype))(
            ctypes.byref(_heads(query.shape[1], keys, scale=scale)),
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            segments.data_ptr(),
            len(segments),
            out.data_ptr(),
            torch.get_num_threads(),
        )

    def run_layers(
        self,
        stack: LayerStack,
        x: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        segments: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        intermediate_size: int,
        eps: float,
        scale: float,
    ) -> None:
        """All layers of a step at once.

        Args:
            stack: Their weights.
            x: Embedded tokens [T, H], float32; becomes the hidden states before the final norm.
            rotation: As in `prepare`.
            slots: Likewise.
            segments: As in `attend`; every row belongs to one of them.
            keys: The arena [L, K, S, D].
            values: Likewise.
            intermediate_size: I of the gated MLP.
            eps: Of all norms.
            scale: As in `attend`.
        """
        num_tokens, hidden = x.shape
        if not num_tokens:
            return
        dim = keys.shape[-1]
        # qkv has as many outputs as there are heads of all three kinds.
        num_queries = stack.layers[0].qkv.num_weights // (hidden * dim) - 2 * keys.shape[1]
        heads = _heads(num_queries, keys[0], eps=eps, scale=scale)
        shape = Shape(len(stack.layers), hidden, intermediate_size, keys.stride(0), heads)
        batch = Batch(
            num_tokens,
            len(segments),
            slots.data_ptr(),
            segments.data_ptr(),
            *(part.data_ptr() for part in rotation),
        )
        room = torch.empty(self._library.guardwire_room(ctypes.byref(shape), num_tokens))
        self._function("layers", _suffix(stack.dtype, keys.dtype))(
            stack.table.data_ptr(),
            ctypes.byref(shape),
            ctypes.byref(batch),
            x.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            room.data_ptr(),
            torch.get_num_threads(),
        )


def _heads(num_queries: int, keys: torch.Tensor, *, eps: float = 0.0, scale: float = 0.0) -> Heads:
    """What the kernels know of the heads; `keys` is one layer of the arena [K, S, D]."""
    return Heads(num_queries, len(keys), keys.shape[-1], keys.stride(0), eps, scale)


def _suffix(activations: torch.dtype, cache: torch.dtype) -> str:
    return f"{_SUFFIXES[activations]}_{_SUFFIXES[cache]}"


@cache
def load_native_kernels(directory: Path | None = None) -> NativeKernels | None:
    """Loads the kernels, or None where they cannot be compiled; `directory` as in native_library.load_library."""
    library = load_library(directory)
    return NativeKernels(library) if library else None
