"""The GPU's forward pass, on a CPU with flash attention's reference, against transformers' model."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Copy
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.cuda_backbone import CudaBackbone
from guardwire_server.model.cuda_batch import QUERY_BLOCK, Bucket, StepSize, split
from guardwire_server.model.cuda_forward import CudaForward, has_plain_shape, unfit
from guardwire_server.model.ragged_attention import KvTensors
from tests.model.checkpoints import write_stream_checkpoint
from tests.model.cuda_stepping import Ragged, ReplayRecorder, cuda_stepper, plan_of
from tests.model.flash_reference import reference_flash

CPU = torch.device("cpu")
NUM_SLOTS = 1024
LARGEST = StepSize(max_tokens=512, max_seqs=16, max_keys=512)
SPLITS = [[70], [1] * 70, [1, 69], [69, 1], [33, 2, 1, 34], [64, 6]]
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.15}
"""As in test_backbone: of hidden states of the order of 1."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream_checkpoint(tmp_path_factory.mktemp("forward") / "tiny", layers=3, head_dim=32)


@pytest.fixture(params=["exact", "recorded"])
def recorder(request: pytest.FixtureRequest) -> ReplayRecorder | None:
    """Every test that takes it runs twice: in steps of exactly their size, and padded to what is recorded."""
    return ReplayRecorder() if request.param == "recorded" else None


def load(path: Path, dtype: torch.dtype = torch.float32) -> Qwen3Model:
    return load_stream(open_checkpoint(path), CPU, dtype).model


def stepper(path: Path, recorder: ReplayRecorder | None, dtype: torch.dtype = torch.float32) -> CudaBackbone:
    return cuda_stepper(load(path, dtype), NUM_SLOTS, LARGEST, recorder, reference_flash)


def step(
    backbone: CudaBackbone, *chunks: tuple[Extent, int, Sequence[int]], copies: Sequence[Copy] = ()
) -> torch.Tensor:
    """Float32 [T, H], which the next step leaves alone."""
    return backbone.step(plan_of(*chunks, copies=copies)).float().clone()


@torch.inference_mode()
def whole_forward(path: Path, ids: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = _oracle(path, dtype)
    hidden: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return hidden.float()


@cache
def _oracle(path: Path, dtype: torch.dtype) -> Qwen3Model:
    model = load(path, dtype)
    model.set_attn_implementation("sdpa")
    return model


def token_ids(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(400), k=num_tokens)


def close(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", SPLITS)
def test_chunks_give_what_the_whole_gives(
    path: Path, recorder: ReplayRecorder | None, sizes: list[int], dtype: torch.dtype
) -> None:
    ids, extent, backbone = token_ids(70), Extent(128, 128), stepper(path, recorder, dtype)
    parts, start = [], 0
    for size in sizes:
        parts.append(step(backbone, (extent, start, ids[start : start + size])))
        start += size
    close(torch.cat(parts), whole_forward(path, ids, dtype), dtype)
    assert recorder is None or recorder.num_replayed == len(sizes)


def test_a_chunk_of_several_pieces_beside_short_ones(path: Path, recorder: ReplayRecorder | None) -> None:
    long, short, backbone = token_ids(20 + 3 * QUERY_BLOCK), token_ids(9, seed=1), stepper(path, recorder)
    far, near = Extent(512, 512), Extent(0, 64)
    step(backbone, (far, 0, long[:20]), (near, 0, short[:8]))
    hidden = step(backbone, (far, 20, long[20:]), (near, 8, short[8:]))
    close(hidden, torch.cat((whole_forward(path, long)[20:], whole_forward(path, short)[8:])))


@pytest.mark.parametrize("seed", range(2))
def test_any_schedule_gives_what_each_sequence_gives_alone(
    path: Path, recorder: ReplayRecorder | None, seed: int
) -> None:
    """Six sequences that grow by one token or many, and are rolled back, in one arena."""
    backbone = stepper(path, recorder)
    ragged = Ragged([Extent(64 * number, 64) for number in range(6)], vocabulary_size=400, seed=seed)
    for chunks in ragged.steps(9):
        hidden = step(backbone, *((ragged.extents[index], start, ids) for index, start, ids in chunks))
        expected = [whole_forward(path, ragged.ids[index])[start:] for index, start, _ in chunks]
        close(hidden, torch.cat(expected))


def test_a_sequence_goes_on_where_a_copy_took_it(path: Path, recorder: ReplayRecorder | None) -> None:
    ids, other, backbone = token_ids(100), token_ids(64, seed=1), stepper(path, recorder)
    small, large = Extent(0, 64), Extent(128, 128)
    step(backbone, (small, 0, ids[:60]))
    moved = step(backbone, (large, 60, ids[60:]), (small, 0, other), copies=[Copy(small, large, 60)])
    close(moved, torch.cat((whole_forward(path, ids)[60:], whole_forward(path, other))))


def test_one_query_head_for_each_key_value_head(tmp_path: Path, recorder: ReplayRecorder | None) -> None:
    path = write_stream_checkpoint(tmp_path, heads=4, kv_heads=4, head_dim=32)
    ids, backbone = token_ids(20), stepper(path, recorder)
    step(backbone, (Extent(0, 64), 0, ids[:15]))
    close(step(backbone, (Extent(0, 64), 15, ids[15:])), whole_forward(path, ids)[15:])


@pytest.mark.parametrize("bucket", [Bucket(16, 1, 16, 128), Bucket(32, 32, 8, 128)])
def test_the_operator_takes_the_arguments(path: Path, bucket: Bucket) -> None:
    """PyTorch's own operator, on the meta device, which computes nothing but checks the call."""
    model: Qwen3Model = cast(Any, load(path, torch.bfloat16)).to("meta")
    kv = KvTensors(model.config, NUM_SLOTS, torch.device("meta"), torch.bfloat16)
    words = torch.zeros(bucket.num_words, dtype=torch.int32, device="meta")
    hidden = CudaForward(model)(split(words, bucket), kv)
    assert hidden.shape == (bucket.num_tokens, model.config.hidden_size)
    assert hidden.dtype is torch.bfloat16


class TestUnfit:
    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if a GPU of the newest kind were here."""
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    def test_a_plain_model_in_half_precision_is_fit(self, path: Path) -> None:
        assert unfit(load(path, torch.bfloat16), torch.bfloat16) is None
        assert unfit(load(path, torch.float16), torch.float16) is None

    def test_float32_is_not(self, path: Path) -> None:
        assert "float32" in str(unfit(load(path), torch.float32))
        assert "keys in torch.float16" in str(unfit(load(path, torch.bfloat16), torch.float16))

    def test_neither_is_an_old_gpu(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert "capability 8.0" in str(unfit(load(path, torch.bfloat16), torch.bfloat16))

    def test_nor_a_pytorch_without_flash_attention(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
        assert "without flash attention" in str(unfit(load(path, torch.bfloat16), torch.bfloat16))

    def test_nor_another_model(self, path: Path) -> None:
        model = load(path, torch.bfloat16)
        model.config.hidden_act = "gelu"
        assert "not a plain Qwen3" in str(unfit(model, torch.bfloat16))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"head_dim": 36},
        {"head_dim": 264},
        {"use_sliding_window": True, "sliding_window": 16},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}},
    ],
)
def test_what_is_left_to_transformers(changes: dict[str, Any]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 16}
    common = {**sizes, "num_key_value_heads": 2, "intermediate_size": 32, "vocab_size": 8}
    with torch.device("meta"):
        assert has_plain_shape(Qwen3Model(Qwen3Config(**common)))
        assert not has_plain_shape(Qwen3Model(Qwen3Config(**(common | changes))))
