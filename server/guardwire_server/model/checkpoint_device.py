"""Chooses where a model runs and in which number format."""

from pathlib import Path

import torch

from guardwire_server.core.errors import StartupError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_NATIVE_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA Ampere, the first with bfloat16 tensor cores
_NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def choose_device_and_dtype(device: str = "auto", dtype: str = "auto") -> tuple[torch.device, torch.dtype]:
    """Resolves what an operator asked for.

    Args:
        device: `auto` (a CUDA device where there is one, else the processor), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (bfloat16, in which the checkpoints are stored, where the device computes in it natively; else
            float32), `float32`, `bfloat16` or `float16`.

    Raises:
        StartupError: There is no such device here, or no such dtype.
    """
    chosen = _device(device)
    if dtype == "auto":
        return chosen, torch.bfloat16 if _has_native_bfloat16(chosen) else torch.float32
    if dtype not in DTYPES:
        raise StartupError(f"dtype: {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return chosen, DTYPES[dtype]


def choose_kv_dtype(kv_dtype: str, dtype: str, chosen: torch.dtype, *, is_converted_in_kernel: bool) -> torch.dtype:
    """Resolves what a model's keys and values are kept in.

    Args:
        kv_dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto`: as the published models keep them, in bfloat16,
            where `dtype` is `auto` too and reading them costs no conversion of its own; else in the model's dtype.
        dtype: What an operator asked for.
        chosen: The model's dtype.
        is_converted_in_kernel: Whether attention reads bfloat16 at no cost.

    Raises:
        StartupError: There is no such dtype.
    """
    if kv_dtype == "auto":
        return torch.bfloat16 if dtype == "auto" and is_converted_in_kernel else chosen
    if kv_dtype not in DTYPES:
        raise StartupError(f"kv_dtype: {kv_dtype!r} is none of auto, {', '.join(DTYPES)}")
    return DTYPES[kv_dtype]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StartupError(f"device: {name!r} is none of auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise StartupError(f"device: {name!r} is not served; auto, cpu, cuda and cuda:N are")
    index = device.index or 0
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= num_devices:
        raise StartupError(f"device: {name!r} is not here: torch sees {num_devices} CUDA devices")
    return torch.device("cuda", index)


def _has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed natively, not converted from and to float32 (3 to 5 times slower or worse)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _NATIVE_BFLOAT16_CAPABILITY
    return bool(_NATIVE_BFLOAT16_FLAGS & processor_flags())


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the first processor, by Linux's names; empty where Linux does not tell.

    Read from the kernel, because the torch releases that we support do not all have a public call for it.
    """
    try:
        with cpuinfo.open(encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
