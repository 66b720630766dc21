"""The choice of device and dtype."""

from pathlib import Path

import pytest
import torch

from guardwire_server.core.errors import StartupError
from guardwire_server.model import checkpoint_device
from guardwire_server.model.checkpoint_device import choose_device_and_dtype, choose_kv_dtype, processor_flags


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Pretends two devices; their compute capability can be changed."""
    capability = {"value": (9, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability["value"])
    return capability


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        (frozenset({"avx512f", "avx512_bf16"}), torch.bfloat16),
        (frozenset({"amx_bf16"}), torch.bfloat16),
        (frozenset({"avx2", "avx512f"}), torch.float32),
        (frozenset(), torch.float32),
    ],
)
def test_the_processor_decides_where_there_is_no_gpu(
    flags: frozenset[str], dtype: torch.dtype, no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_device, "processor_flags", lambda: flags)
    assert choose_device_and_dtype() == (torch.device("cpu"), dtype)
    assert choose_device_and_dtype("cpu", "float32") == (torch.device("cpu"), torch.float32)
    assert choose_device_and_dtype("cpu", "float16") == (torch.device("cpu"), torch.float16)


def test_a_gpu_is_preferred(two_gpus: dict[str, tuple[int, int]]) -> None:
    assert choose_device_and_dtype() == (torch.device("cuda", 0), torch.bfloat16)
    assert choose_device_and_dtype("cuda") == (torch.device("cuda", 0), torch.bfloat16)
    assert choose_device_and_dtype("cuda:1", "float16") == (torch.device("cuda", 1), torch.float16)
    assert choose_device_and_dtype("cpu")[0] == torch.device("cpu")


def test_an_old_gpu_computes_in_float32(two_gpus: dict[str, tuple[int, int]]) -> None:
    two_gpus["value"] = (7, 5)
    assert choose_device_and_dtype()[1] == torch.float32
    assert choose_device_and_dtype(dtype="bfloat16")[1] == torch.bfloat16


def test_a_gpu_that_is_not_here(two_gpus: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(StartupError, match="device: 'cuda:2' is not here: torch sees 2 CUDA devices"):
        choose_device_and_dtype("cuda:2")


def test_no_gpu_at_all(no_gpu: None) -> None:
    with pytest.raises(StartupError, match="torch sees 0 CUDA devices"):
        choose_device_and_dtype("cuda")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "mps", "meta"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(StartupError, match=rf"device: '{device}'"):
        choose_device_and_dtype(device)


@pytest.mark.parametrize("dtype", ["int8", "", "torch.float32"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(StartupError, match=r"dtype: .* is none of auto, float32, bfloat16, float16"):
        choose_device_and_dtype("cpu", dtype)


@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "chosen", "is_converted", "expected"),
    [
        ("auto", "auto", torch.float32, True, torch.bfloat16),
        ("auto", "auto", torch.float32, False, torch.float32),
        ("auto", "auto", torch.bfloat16, False, torch.bfloat16),
        ("auto", "float32", torch.float32, True, torch.float32),  # who asks for float32 gets it throughout
        ("float32", "auto", torch.bfloat16, True, torch.float32),
        ("bfloat16", "float32", torch.float32, False, torch.bfloat16),
    ],
)
def test_what_the_cache_is_kept_in(
    kv_dtype: str, dtype: str, chosen: torch.dtype, is_converted: bool, expected: torch.dtype
) -> None:
    assert choose_kv_dtype(kv_dtype, dtype, chosen, is_converted_in_kernel=is_converted) is expected


def test_other_dtypes_of_the_cache_are_refused() -> None:
    with pytest.raises(StartupError, match=r"kv_dtype: 'int8' is none of auto, float32, bfloat16, float16"):
        choose_kv_dtype("int8", "auto", torch.float32, is_converted_in_kernel=True)


def test_the_flags_are_those_of_the_kernel(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16 sse\nbugs\t\t: none\n\nflags\t\t: other\n")
    assert processor_flags(cpuinfo) == {"fpu", "amx_bf16", "sse"}
    assert processor_flags(tmp_path / "absent") == frozenset()
    cpuinfo.write_text("processor\t: 0\n")
    assert processor_flags(cpuinfo) == frozenset()
