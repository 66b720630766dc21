"""Steps over an arena compute what one forward pass of transformers' model over the whole sequence computes."""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Copy, Read, StepPlan
from guardwire_server.model import native_kernels
from guardwire_server.model.backbone import Backbone, ModelForward, rows_to_read
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.native_forward import LayeredForward, can_run
from guardwire_server.model.native_kernels import NativeKernels, load_native_kernels
from tests.model.checkpoints import write_stream_checkpoint
from tests.tools import skip_without

CPU = torch.device("cpu")
NUM_SLOTS = 1024
KERNELS: NativeKernels | None = None
SPLITS = [[70], [1] * 70, [1, 69], [69, 1], [33, 2, 1, 34], [64, 6]]
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""Of hidden states, which are of the order of 1; bfloat16 has 8 bits, and the layers add their roundings up."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream_checkpoint(tmp_path_factory.mktemp("backbone") / "tiny", layers=3, head_dim=32)


@pytest.fixture(params=["native", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs twice: with the compiled kernels and without."""
    native = load_native_kernels() if request.param == "native" else None
    if request.param == "native" and native is None:
        skip_without("a C++ compiler (Debian: g++)")
    monkeypatch.setattr(f"{__name__}.KERNELS", native)


def backbone(path: Path, dtype: torch.dtype = torch.float32, kv_dtype: torch.dtype | None = None) -> Backbone:
    model = load_stream(open_checkpoint(path), CPU, dtype).model
    assert KERNELS is None or can_run(model, KERNELS, kv_dtype or dtype)
    stepping = Backbone(model, NUM_SLOTS, KERNELS, kv_dtype)
    stepping.kv.keys.fill_(torch.nan)  # whoever reads a slot that nobody wrote is found out
    stepping.kv.values.fill_(torch.nan)
    return stepping


@torch.inference_mode()
def whole_forward(path: Path, ids: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model: Qwen3Model = load_stream(open_checkpoint(path), CPU, dtype).model
    model.set_attn_implementation("sdpa")
    hidden: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return hidden


def token_ids(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(400), k=num_tokens)


def step(stepping: Backbone, *chunks: tuple[Extent, int, Sequence[int]], copies: Sequence[Copy] = ()) -> torch.Tensor:
    """Runs (extent, start, ids) chunks."""
    planned = [
        Chunk(seq_id, 0, start, array("i", ids), bytes(len(ids)), extent)
        for seq_id, (extent, start, ids) in enumerate(chunks)
    ]
    return stepping.step(StepPlan(tuple(copies), tuple(planned)))


def close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", SPLITS)
def test_chunks_give_what_the_whole_gives(path: Path, sizes: list[int], dtype: torch.dtype) -> None:
    ids, extent, stepping = token_ids(70), Extent(128, 128), backbone(path, dtype)
    parts, start = [], 0
    for size in sizes:
        parts.append(step(stepping, (extent, start, ids[start : start + size])))
        start += size
    hidden = torch.cat(parts)
    assert hidden.dtype is dtype
    close(hidden, whole_forward(path, ids, dtype), dtype)


def test_products_are_left_to_matrix_units(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with some for bfloat16, which oneDNN uses and the kernels do not."""
    monkeypatch.setattr(native_kernels, "processor_flags", lambda: frozenset({"avx512_bf16", "amx_bf16"}))
    ids, extent, stepping = token_ids(70), Extent(128, 128), backbone(path, torch.bfloat16)
    assert isinstance(stepping._forward, LayeredForward if KERNELS else ModelForward)
    hidden = torch.cat([step(stepping, (extent, 0, ids[:60])), step(stepping, (extent, 60, ids[60:]))])
    close(hidden, whole_forward(path, ids, torch.bfloat16), torch.bfloat16)


def test_a_cache_in_fewer_bits(path: Path) -> None:
    """float32 arithmetic over keys and values in bfloat16 comes nearer to float32 than bfloat16 throughout."""
    ids, extent, distances = token_ids(70), Extent(128, 128), []
    for dtype in (torch.float32, torch.bfloat16):
        stepping = backbone(path, dtype, torch.bfloat16)
        assert stepping.kv.keys.dtype is torch.bfloat16
        hidden = torch.cat([step(stepping, (extent, 0, ids[:60])), step(stepping, (extent, 60, ids[60:]))])
        assert hidden.dtype is dtype
        distances.append((hidden.float() - whole_forward(path, ids)).abs().mean().item())
    assert 0 < distances[0] < 0.6 * distances[1]


def test_a_batch_gives_what_each_sequence_gives_alone(path: Path) -> None:
    """Twelve sequences of different ages: some begin, some go on by one token, some by many."""
    lengths = [(0, 1), (0, 30), (1, 1), (5, 9), (17, 1), (40, 1), (40, 20), (63, 1), (2, 3), (0, 64), (31, 33), (8, 1)]
    stepping, sequences = backbone(path), [token_ids(past + new, seed) for seed, (past, new) in enumerate(lengths)]
    extents = [Extent(64 * number, 64) for number in range(len(lengths))]
    step(stepping, *((extents[i], 0, sequences[i][:past]) for i, (past, _) in enumerate(lengths) if past))
    hidden = step(stepping, *((extents[i], past, sequences[i][past:]) for i, (past, _) in enumerate(lengths)))
    expected = [whole_forward(path, ids)[past:] for ids, (past, _) in zip(sequences, lengths, strict=True)]
    close(hidden, torch.cat(expected))


def test_rolled_back_gives_what_fresh_gives(path: Path) -> None:
    ids, other, stepping, extent = token_ids(40), token_ids(40, seed=1), backbone(path), Extent(64, 64)
    step(stepping, (extent, 0, ids))
    assert not torch.allclose(whole_forward(path, ids)[30:], whole_forward(path, [*ids[:12], *other[12:]])[30:])
    hidden = step(stepping, (extent, 12, other[12:]))
    close(hidden, whole_forward(path, [*ids[:12], *other[12:]])[12:])


def test_a_sequence_goes_on_where_a_copy_took_it(path: Path) -> None:
    ids, other, stepping = token_ids(100), token_ids(64, seed=1), backbone(path)
    small, large = Extent(0, 64), Extent(128, 128)
    step(stepping, (small, 0, ids[:60]))
    moved = step(stepping, (large, 60, ids[60:]), (small, 0, other), copies=[Copy(small, large, 60)])
    close(moved, torch.cat((whole_forward(path, ids)[60:], whole_forward(path, other))))


def test_copies_of_a_step_run_in_their_order(path: Path) -> None:
    """The second one takes the place that the first one has left."""
    first, second, stepping = token_ids(50), token_ids(50, seed=1), backbone(path)
    a, b, c = Extent(0, 64), Extent(64, 64), Extent(512, 64)
    step(stepping, (a, 0, first[:49]), (b, 0, second[:49]))
    hidden = step(stepping, (c, 49, first[49:]), (a, 49, second[49:]), copies=[Copy(a, c, 49), Copy(b, a, 49)])
    close(hidden, torch.stack((whole_forward(path, first)[49], whole_forward(path, second)[49])))


def test_one_query_head_for_each_key_value_head(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path, heads=4, kv_heads=4, head_dim=32)
    ids, stepping = token_ids(20), backbone(path)
    step(stepping, (Extent(0, 64), 0, ids[:15]))
    close(step(stepping, (Extent(0, 64), 15, ids[15:])), whole_forward(path, ids)[15:])


def test_the_rows_to_read_are_those_with_the_code() -> None:
    codes = (bytes((Read.NOTHING, Read.QUERY, Read.RESPONSE)), bytes((Read.RESPONSE,)), bytes((0, Read.QUERY)))
    chunks = tuple(
        Chunk(seq_id, 0, 0, array("i", [0] * len(reads)), reads, Extent(64 * seq_id, 64))
        for seq_id, reads in enumerate(codes)
    )
    plan = StepPlan((), chunks)
    assert rows_to_read(plan, Read.RESPONSE).tolist() == [2, 3]
    assert rows_to_read(plan, Read.QUERY).tolist() == [1, 5]
    assert rows_to_read(plan, Read.LOGITS).tolist() == []
