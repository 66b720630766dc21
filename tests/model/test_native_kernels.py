"""The compiled kernels, each against the few lines of torch that say what it computes; and how they are built."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from guardwire_server.model import native_kernels, native_library
from guardwire_server.model.native_kernels import DTYPE_PAIRS, Epilogue, NativeKernels, load_native_kernels
from guardwire_server.model.native_library import load_library
from guardwire_server.model.projections import gated_pair, projection
from tests.tools import skip_without

EPS = 1e-6
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of values of the order of 1: sums in another order, and one rounding to bfloat16."""


@pytest.fixture(scope="module")
def kernels() -> NativeKernels:
    loaded = load_native_kernels()
    if loaded is None:
        skip_without("a C++ compiler (Debian: g++)")
    return loaded


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def weight_of(outputs: int, inputs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A weight that bfloat16 holds exactly."""
    return normal(outputs, inputs, dtype=torch.bfloat16, seed=seed, scale=inputs**-0.5).to(dtype)


def close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(left.float(), right.float(), rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 25, 64, 257])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 16), (96, 64), (320, 1040)])
def test_a_product(
    kernels: NativeKernels, num_threads: int, num_rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    """Activations are rounded to the weight's dtype first, what they come to is not."""
    weight, x = weight_of(outputs, inputs, dtype=dtype), normal(num_rows, inputs, seed=1)
    assert kernels.can_pack(weight)
    panels = kernels.pack(weight)
    product, residual = linear(x.to(dtype).float(), weight.float()), normal(num_rows, outputs, seed=2)
    close(kernels.linear(panels, x, torch.empty(num_rows, outputs), Epilogue.STORE), product)
    close(kernels.linear(panels, x, residual.clone(), Epilogue.ADD), product + residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [0, 1, 5, 16, 64])
def test_a_gated_pair(kernels: NativeKernels, num_threads: int, num_rows: int, dtype: torch.dtype) -> None:
    gate, up = weight_of(48, 64, dtype=dtype), weight_of(48, 64, seed=1, dtype=dtype)
    x = 4 * normal(num_rows, 64, seed=2)
    assert kernels.can_pack(gate, gated=True)
    out = kernels.linear(kernels.pack(gate, up), x, torch.empty(num_rows, 48), Epilogue.GATE)
    x = x.to(dtype).float()
    close(out, silu(linear(x, gate.float())) * linear(x, up.float()))


def test_gates_far_from_zero_saturate(kernels: NativeKernels) -> None:
    """exp must neither overflow to nan nor wrap around."""
    factors = torch.tensor([-1e9, -1e4, -200.0, -88.0, 0.0, 88.0, 200.0, 1e4, 1e9])
    x = factors.unsqueeze(1).expand(-1, 16).contiguous()
    gate = torch.zeros(32, 16)
    gate[:, 0] = 1
    out = kernels.linear(kernels.pack(gate, gate), x, torch.empty(len(x), 32), Epilogue.GATE)
    close(out[:, 0], silu(factors) * factors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_projections(kernels: NativeKernels, dtype: torch.dtype) -> None:
    """Layers over panels give and take the dtype of their weights."""
    weight, x = weight_of(64, 32, dtype=dtype), normal(5, 32, dtype=dtype, seed=1)
    expected, layer = linear(x.float(), weight.float()), projection(weight, kernels)
    assert layer(x).dtype == layer.add(x, x @ weight.T).dtype == dtype
    close(layer(x), expected, dtype)
    close(layer.add(x, expected.to(dtype, copy=True)), 2 * expected, dtype)
    pair = gated_pair(weight, weight, kernels)
    assert pair(x).dtype == dtype
    close(pair(x), silu(expected) * expected, dtype)


def test_weights_that_do_not_fit_are_told(kernels: NativeKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_kernels, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    fitting = weight_of(64, 64)
    assert kernels.can_pack(fitting)
    assert not kernels.can_pack(fitting[:63])
    assert not kernels.can_pack(fitting[:, :63])
    assert kernels.can_pack(fitting.bfloat16())
    assert not kernels.can_pack(fitting.half())
    assert not kernels.can_pack(fitting + 2**-20)  # not exact in bfloat16
    assert not kernels.can_pack(fitting.to("meta"))
    monkeypatch.setattr(native_kernels, "processor_flags", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    assert kernels.can_pack(fitting)
    assert not kernels.can_pack(fitting.bfloat16())  # oneDNN has matrix units for it


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm(kernels: NativeKernels, dtype: torch.dtype) -> None:
    x, weight = 3 * normal(5, 192, dtype=dtype), normal(192, dtype=dtype, seed=1)
    close(kernels.rms_norm(x, weight, EPS), rms_norm(x.float(), (192,), weight.float(), EPS), dtype)


@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPE_PAIRS)
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 40])
def test_queries_keys_and_values_are_prepared(
    kernels: NativeKernels, num_threads: int, num_tokens: int, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    heads, kv_heads, dim, num_slots = 6, 2, 64, 100
    qkv = normal(num_tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    norms = (normal(dim, dtype=dtype, seed=1), normal(dim, dtype=dtype, seed=2))
    angles = normal(num_tokens, dim // 2, seed=3, scale=10.0)
    slots = torch.randperm(num_slots, generator=torch.Generator().manual_seed(4))[:num_tokens]
    keys, values = torch.full((2, kv_heads, num_slots, dim), torch.nan, dtype=kv_dtype)
    query = kernels.prepare(qkv, norms, (angles.cos(), angles.sin()), slots, keys, values, EPS)

    split = qkv.view(num_tokens, heads + 2 * kv_heads, dim).float()
    close(query, rotated(rms_norm(split[:, :heads], (dim,), norms[0].float(), EPS), angles), torch.float32)
    expected_keys = rotated(rms_norm(split[:, heads : heads + kv_heads], (dim,), norms[1].float(), EPS), angles)
    close(keys[:, slots], expected_keys.transpose(0, 1), kv_dtype)
    assert torch.equal(values[:, slots], split[:, heads + kv_heads :].transpose(0, 1).to(kv_dtype))
    untouched = torch.ones(num_slots, dtype=torch.bool)
    untouched[slots] = False
    assert keys[:, untouched].isnan().all()
    assert values[:, untouched].isnan().all()


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D], angles [T, D / 2]: each pair (x_i, x_(i + D / 2)) turned by its angle."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)


@pytest.mark.parametrize(("dtype", "kv_dtype"), DTYPE_PAIRS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 128), (3, 3, 32), (10, 2, 64), (3, 1, 32), (16, 2, 64)])
def test_attention(
    kernels: NativeKernels,
    num_threads: int,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> None:
    """(slot, cached, new) of sequences of all ages; what lies between their extents is not a number."""
    sequences = [(0, 0, 1), (10, 0, 7), (30, 3, 1), (64, 63, 2), (200, 17, 16), (300, 100, 1), (420, 40, 3)]
    keys, values = torch.full((2, kv_heads, 500, dim), torch.nan, dtype=kv_dtype)
    query = normal(sum(new for _, _, new in sequences), heads, dim, seed=5)
    segments, expected, begin = [], [], 0
    for slot, past, new in sequences:
        extent = slice(slot, slot + past + new)
        keys[:, extent] = normal(kv_heads, past + new, dim, dtype=kv_dtype, seed=slot)
        values[:, extent] = normal(kv_heads, past + new, dim, dtype=kv_dtype, seed=slot + 1)
        segments.append((slot, past, begin, begin + new))
        mask = torch.ones(new, past + new, dtype=torch.bool).tril(past)
        rows = scaled_dot_product_attention(
            query[begin : begin + new].transpose(0, 1).unsqueeze(0),
            keys[:, extent].float().unsqueeze(0),
            values[:, extent].float().unsqueeze(0),
            attn_mask=mask,
            scale=0.3,
            enable_gqa=True,
        )
        expected.append(rows[0].transpose(0, 1).flatten(1))
        begin += new
    out = torch.empty(begin, heads * dim, dtype=dtype)
    kernels.attend(query, keys, values, torch.tensor(segments), 0.3, out)
    close(out, torch.cat(expected), dtype)


def test_no_segments(kernels: NativeKernels) -> None:
    keys = values = normal(1, 4, 32)
    segments = torch.empty(0, 4, dtype=torch.int64)
    kernels.attend(torch.empty(0, 2, 32), keys, values, segments, 1.0, torch.empty(0, 64))


def test_attention_far_from_zero(kernels: NativeKernels) -> None:
    """Scores in the thousands: the highest one takes all, nothing overflows."""
    keys = torch.zeros(1, 20, 32)
    keys[0, :, 0] = torch.arange(20)
    values = normal(1, 20, 32)
    query = torch.full((1, 1, 32), 300.0)
    out = torch.empty(1, 32)
    kernels.attend(query, keys, values, torch.tensor([[0, 19, 0, 1]]), 1.0, out)
    close(out[0], values[0, 19])


@pytest.fixture
def small_source(kernels: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that compiles faster than the kernels, where there is a compiler."""
    source = tmp_path / "source" / "small.cpp"
    source.parent.mkdir()
    source.write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(native_library, "SOURCE", source)


@pytest.mark.usefixtures("small_source")
def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    assert answer(load_library(cache)) == 42
    files = list(cache.iterdir())
    assert [file.suffix for file in files] == [".so"]
    monkeypatch.setattr(native_library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert answer(load_library(cache)) == 42


@pytest.mark.usefixtures("small_source")
def test_a_directory_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert answer(load_library(tmp_path / "file" / "below")) == 42


@pytest.mark.usefixtures("small_source")
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert answer(load_library()) == 42


def answer(library: ctypes.CDLL | None) -> int:
    assert library is not None
    return int(library.answer())


def test_without_a_compiler_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert load_native_kernels.__wrapped__(tmp_path) is None


@pytest.mark.parametrize("script", ["echo version; exit 3", "[ $1 = --version ] && exit 0; echo no >&2; exit 1"])
def test_a_compiler_that_fails_is_done_without(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler) if name == "c++" else None)
    assert load_native_kernels.__wrapped__(tmp_path / "cache") is None
    assert "torch alone" in caplog.text


def test_the_library_brings_no_second_openmp_runtime(kernels: NativeKernels) -> None:
    """Two thread pools in one process would fight for the cores."""
    maps = Path(f"/proc/{os.getpid()}/maps")
    if not maps.exists():
        pytest.skip("needs Linux's /proc")
    loaded = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line.rpartition("/")[2]}
    assert len(loaded) == 1, loaded


def test_the_source_compiles_without_warnings(kernels: NativeKernels) -> None:
    compiler = next(path for name in ("c++", "g++", "clang++") if (path := shutil.which(name)))
    warnings = ("-Wall", "-Wextra", "-Werror")
    command = [compiler, *native_library.FLAGS, *warnings, "-fsyntax-only", str(native_library.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
