"""Loading weights: what transformers computes with them, and errors that name file and key."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from guardwire_server.core.errors import StartupError
from guardwire_server.model import checkpoint_files
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import GenWeights, load_gen, load_stream
from guardwire_server.model.stream_guard import StreamGuard
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint

CPU = torch.device("cpu")


def stream(path: Path, dtype: torch.dtype = torch.float32) -> StreamGuard:
    return load_stream(open_checkpoint(path), CPU, dtype)


def gen(path: Path, dtype: torch.dtype = torch.float32) -> GenWeights:
    return load_gen(open_checkpoint(path), CPU, dtype)


def token_ids(num_tokens: int = 12) -> torch.Tensor:
    return torch.randint(0, 400, (1, num_tokens), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def gen_logits(weights: GenWeights) -> torch.Tensor:
    hidden: torch.Tensor = weights.backbone(input_ids=token_ids()).last_hidden_state
    return hidden @ weights.lm_head.T


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_gen_computes_what_transformers_computes(tmp_path: Path, tied: bool, sharded: bool) -> None:
    path = write_gen_checkpoint(tmp_path, tied=tied, sharded=sharded)
    reference = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(input_ids=token_ids(), use_cache=False).logits
    torch.testing.assert_close(gen_logits(gen(path)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stream_holds_the_stored_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_stream_checkpoint(tmp_path)
    guard = stream(path, dtype)
    stored = load_file(path / "model.safetensors")
    loaded = guard.state_dict()
    assert loaded.keys() == stored.keys()
    for key, tensor in stored.items():
        assert torch.equal(loaded[key], tensor.to(dtype)), key


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    one, three = (
        stream(write_stream_checkpoint(tmp_path / str(sharded), sharded=sharded)).state_dict()
        for sharded in (False, True)
    )
    assert one.keys() == three.keys()
    assert all(torch.equal(one[key], three[key]) for key in one)


def test_a_loaded_model_is_ready_to_serve(stream_path: Path) -> None:
    guard = stream(stream_path, torch.bfloat16)
    assert not guard.training
    assert not any(module.training for module in guard.modules())
    assert not any(parameter.requires_grad for parameter in guard.parameters())
    assert {tensor.device.type for tensor in (*guard.parameters(), *guard.buffers())} == {"cpu"}
    assert {parameter.dtype for parameter in guard.parameters()} == {torch.bfloat16}
    assert guard.model.rotary_emb.inv_freq.dtype == torch.float32
    with torch.inference_mode():
        hidden = guard.model(input_ids=token_ids()).last_hidden_state[0]
        assert guard.response_probabilities(hidden)[0].isfinite().all()


def test_the_rotary_frequencies_follow_the_config(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path, head_dim=16, config_changes={"rope_theta": 5e5})
    expected = 5e5 ** -(torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    torch.testing.assert_close(stream(path).model.rotary_emb.inv_freq, expected)


def test_weights_are_copies_and_not_views_of_the_file(tmp_path: Path) -> None:
    """Otherwise replacing the file under a running server would change or crash it."""
    path = write_stream_checkpoint(tmp_path, dtype=torch.float32)
    guard = stream(path, torch.float32)
    before = {key: tensor.clone() for key, tensor in guard.state_dict().items()}
    weights = path / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(bytes(4096))
    assert all(torch.equal(tensor, before[key]) for key, tensor in guard.state_dict().items())


def test_the_width_of_the_heads_may_be_left_to_the_weights(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path, guard_inner=48, config_changes={"guard_inner_size": None})
    assert open_checkpoint(path).guard_inner_size is None
    assert stream(path).guard_inner_size == 48


def test_a_language_model_head_in_a_stream_checkpoint_is_tolerated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_stream_checkpoint(tmp_path, extra_tensors={"lm_head.weight": torch.zeros(4, 4)})
    stream(path)
    assert caplog.records == []


def test_a_stored_head_beside_tied_embeddings_is_ignored(tmp_path: Path) -> None:
    path = write_gen_checkpoint(tmp_path, extra_tensors={"lm_head.weight": torch.zeros(448, 64)})
    weights = gen(path)
    assert weights.lm_head.data_ptr() == weights.backbone.embed_tokens.weight.data_ptr()


def test_other_tensors_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_stream_checkpoint(tmp_path, extra_tensors={"model.extra": torch.zeros(1)})
    with caplog.at_level(logging.WARNING):
        stream(path)
    assert "ignoring 1 tensors" in caplog.text
    assert "model.extra" in caplog.text


def test_progress_counts_parameters(stream_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    guard = load_stream(open_checkpoint(stream_path), CPU, torch.float32, lambda *call: calls.append(call))
    num_parameters = sum(parameter.numel() for parameter in guard.parameters())
    assert [total for _, total in calls] == [num_parameters] * len(calls)
    assert calls[-1][0] == num_parameters
    assert calls == sorted(calls)


def test_the_other_family_is_refused(stream_path: Path, gen_path: Path) -> None:
    with pytest.raises(StartupError, match=r"config\.json: architectures is Qwen3ForCausalLM; a Qwen3Guard-Stream"):
        stream(gen_path)
    with pytest.raises(StartupError, match=r"config\.json: architectures is Qwen3ForGuardModel; a Qwen3Guard-Gen"):
        gen(stream_path)


def test_a_missing_tensor(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["query_category_head.weight"]
    save_file(tensors, weights)
    with pytest.raises(StartupError, match=r"model\.safetensors: there is no tensor query_category_head\.weight$"):
        stream(path)


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    path = write_gen_checkpoint(tmp_path, config_changes={"tie_word_embeddings": False})
    with pytest.raises(StartupError, match=r"model\.safetensors: there is no tensor lm_head\.weight$"):
        gen(path)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path, extra_tensors={"category_head.weight": torch.zeros(7, 32)})
    message = r"model\.safetensors: category_head\.weight must have the shape \[8, 32\], found \[7, 32\]$"
    with pytest.raises(StartupError, match=message):
        stream(path)


def test_a_tensor_that_is_no_float(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"].to(torch.int32)}, weights)
    with pytest.raises(StartupError, match=r"model\.norm\.weight is stored as I32; served are"):
        stream(path)


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 20_000])
def test_a_truncated_file(tmp_path: Path, num_bytes: int) -> None:
    path = write_stream_checkpoint(tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(StartupError, match=r"model\.safetensors: is damaged or incomplete: .*; download it again$"):
        stream(path)


def test_a_damaged_header(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:40] = b"x" * 32
    weights.write_bytes(content)
    with pytest.raises(StartupError, match="is damaged or incomplete"):
        stream(path)


def test_no_weights(tmp_path: Path) -> None:
    path = write_stream_checkpoint(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(StartupError, match=r"there is neither model\.safetensors nor model\.safetensors\.index\.json"):
        stream(path)


class TestShards:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_stream_checkpoint(tmp_path, sharded=True)

    def change_map(self, path: Path, changes: dict[str, object]) -> None:
        index = path / "model.safetensors.index.json"
        values = json.loads(index.read_text())
        values["weight_map"] |= changes
        index.write_text(json.dumps(values))

    def test_a_missing_shard(self, path: Path) -> None:
        (path / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(
            StartupError, match=r"model-00002-of-00003\.safetensors: there is no such file, but model\."
        ):
            stream(path)

    def test_a_damaged_shard(self, path: Path) -> None:
        shard = path / "model-00002-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(StartupError, match=r"model-00002-of-00003\.safetensors: is damaged or incomplete"):
            stream(path)

    def test_an_index_that_points_to_the_wrong_shard(self, path: Path) -> None:
        weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        other = "model-00001-of-00003.safetensors"
        other = other.replace("00001-", "00002-") if weight_map["model.norm.weight"] == other else other
        self.change_map(path, {"model.norm.weight": other})
        with pytest.raises(StartupError, match=rf"{other}: there is no tensor model\.norm\.weight in it, but"):
            stream(path)

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors"])
    def test_an_index_that_points_elsewhere(self, path: Path, name: str) -> None:
        self.change_map(path, {"model.norm.weight": name})
        with pytest.raises(StartupError, match=r"weight_map names .*, which is not a file of this directory"):
            stream(path)

    def test_an_index_without_a_map(self, path: Path) -> None:
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}')
        with pytest.raises(StartupError, match=r"index\.json: weight_map must be an object"):
            stream(path)

    def test_an_index_without_a_tensor(self, path: Path) -> None:
        index = path / "model.safetensors.index.json"
        values = json.loads(index.read_text())
        del values["weight_map"]["model.norm.weight"]
        index.write_text(json.dumps(values))
        with pytest.raises(StartupError, match=r"index\.json: there is no tensor model\.norm\.weight$"):
            stream(path)


def test_a_model_that_does_not_fit_says_where(stream_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: torch.Tensor, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB\nhints")

    files = checkpoint_files.WeightFiles(stream_path)
    shapes = {"model.norm.weight": files.shape("model.norm.weight")}
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(StartupError, match=r"model\.norm\.weight cannot be placed on cpu .*: CUDA out of memory.*GiB$"):
        list(files.read(shapes, CPU, torch.float32))
