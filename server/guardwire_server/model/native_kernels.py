"""The CPU kernels of kernels.cpp: compiled on this machine, for its processor, when they are first needed.

A wheel with binaries would have to bring one for every processor; a compiler and three seconds give the best one for
this. Where there is no compiler the caller gets None and uses torch instead: same labels, more time.

Shapes as in kernels.cpp. All tensors are contiguous and on the CPU.
"""

import contextlib
import ctypes
import hashlib
import logging
import shutil
import subprocess
import tempfile
from enum import IntEnum
from functools import cache
from pathlib import Path

import torch

from guardwire_server.model.checkpoint_device import processor_flags

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
_COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
_COMPILE_TIMEOUT_S = 120
_INPUT_MULTIPLE = 8  # kStride of kernels.cpp

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
        """Takes a library built from kernels.cpp."""
        self._library = library
        self.lanes = int(library.guardwire_lanes())
        library.guardwire_pack.argtypes = [_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT]
        library.guardwire_linear.argtypes = [_POINTER, _POINTER, _INT64, _INT64, _INT64, _INT, _POINTER, _INT]
        for suffix in _SUFFIXES.values():
            getattr(library, f"guardwire_rms_norm_{suffix}").argtypes = [
                *(_POINTER, _POINTER, _INT64, _INT64, _FLOAT, _POINTER)
            ]
            getattr(library, f"guardwire_prepare_{suffix}").argtypes = [
                *[_POINTER] * 6,
                *[_INT64] * 5,
                *(_FLOAT, _POINTER, _POINTER, _POINTER, _INT),
            ]
            getattr(library, f"guardwire_attend_{suffix}").argtypes = [
                *[_POINTER] * 4,
                *[_INT64] * 5,
                *(_FLOAT, _POINTER, _INT),
            ]

    def can_pack(self, weight: torch.Tensor, *, gated: bool = False) -> bool:
        """Whether the kernels take a weight [O, I]: float32 of a fitting shape, all of it exact in bfloat16."""
        outputs, inputs = weight.shape
        panel = self.lanes if gated else 2 * self.lanes
        return (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and outputs % panel == 0
            and inputs % _INPUT_MULTIPLE == 0
            and torch.equal(weight.bfloat16().float(), weight)
        )

    def pack(self, weight: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """Lays out a weight [O, I] for `linear`; with `up`, of the same shape, as the gated pair (gate, up)."""
        outputs, inputs = weight.shape
        first = weight.to(torch.bfloat16).contiguous()
        second = None if up is None else up.to(torch.bfloat16).contiguous()
        panels = torch.empty(outputs * inputs // (1 if up is not None else 2), dtype=torch.int32)
        self._library.guardwire_pack(
            first.data_ptr(),
            None if second is None else second.data_ptr(),
            outputs,
            inputs,
            panels.data_ptr(),
            torch.get_num_threads(),
        )
        return panels

    def linear(self, panels: torch.Tensor, x: torch.Tensor, out: torch.Tensor, epilogue: Epilogue) -> torch.Tensor:
        """Maps x [T, I], float32, to out [T, O], float32; returns `out`."""
        self._library.guardwire_linear(
            panels.data_ptr(), x.data_ptr(), *x.shape, out.shape[1], epilogue, out.data_ptr(), torch.get_num_threads()
        )
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Normalises the rows of x [T, H]."""
        out = torch.empty_like(x)
        function = getattr(self._library, f"guardwire_rms_norm_{_SUFFIXES[x.dtype]}")
        function(x.data_ptr(), weight.data_ptr(), *x.shape, eps, out.data_ptr())
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
            keys: One layer of the arena [K, S, D]; of qkv's dtype, like `values`.
            values: Likewise.
            eps: Of the norms.

        Returns:
            Queries [T, N, D], float32.
        """
        num_tokens, dim = len(qkv), keys.shape[-1]
        num_kv_heads = len(keys)
        query = torch.empty(num_tokens, qkv.shape[1] // dim - 2 * num_kv_heads, dim)
        function = getattr(self._library, f"guardwire_prepare_{_SUFFIXES[qkv.dtype]}")
        function(
            qkv.data_ptr(),
            *(weight.data_ptr() for weight in norms),
            *(part.data_ptr() for part in rotation),
            slots.data_ptr(),
            num_tokens,
            query.shape[1],
            num_kv_heads,
            dim,
            keys.stride(0),
            eps,
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
            out: [T, N D], of the dtype of `keys`; rows of no segment are left alone.
        """
        function = getattr(self._library, f"guardwire_attend_{_SUFFIXES[keys.dtype]}")
        function(
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            segments.data_ptr(),
            len(segments),
            query.shape[1],
            len(keys),
            query.shape[2],
            keys.stride(0),
            scale,
            out.data_ptr(),
            torch.get_num_threads(),
        )


@cache
def load_native_kernels(directory: Path | None = None) -> NativeKernels | None:
    """Loads the kernels, compiling them if this machine has not done so before; None where it cannot.

    Args:
        directory: Where the compiled library is kept; default: `.cache/guardwire` in the home directory, or nowhere
            where that cannot be written.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        logger.info("no C++ compiler: computing with torch alone, which is slower")
        return None
    try:
        return NativeKernels(_library(compiler, directory or _default_directory()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("the native kernels cannot be used, computing with torch alone: %s", error)
        return None


def _default_directory() -> Path | None:
    try:
        return Path.home() / ".cache" / "guardwire"
    except RuntimeError:  # a user without a home, as containers have them
        return None


def _library(compiler: str, directory: Path | None) -> ctypes.CDLL:
    """The library from the cache, or compiled into it; without a directory, compiled for this process alone."""
    path = directory / f"kernels-{_fingerprint(compiler)}.so" if directory else None
    if path and path.exists():
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as folder:
        compiled = _compile(compiler, Path(folder))
        if path:
            with contextlib.suppress(OSError):  # a home that cannot be written: compile at every start
                _keep(compiled, path)
        return ctypes.CDLL(str(compiled))


def _keep(compiled: Path, path: Path) -> None:
    """Puts the library into the cache at one stroke: another process may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(shutil.copy(compiled, folder)).replace(path)


def _fingerprint(compiler: str) -> str:
    """What the library depends on: source, compiler and processor (a home may be shared by machines)."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S)
    parts = (_SOURCE.read_bytes(), version.stdout, " ".join((*FLAGS, *sorted(processor_flags()))).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: str, folder: Path) -> Path:
    """Compiles kernels.cpp; torch brings the OpenMP runtime, and two of them in one process would fight for cores.

    Raises:
        RuntimeError: If the compiler refuses.
    """
    unit, library = folder / "kernels.o", folder / "kernels.so"
    for command in (
        [compiler, *FLAGS, "-c", str(_SOURCE), "-o", str(unit)],
        [compiler, "-shared", str(unit), "-o", str(library)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr.strip()[:500]}")
    return library
