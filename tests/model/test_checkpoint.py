"""Opening a checkpoint: what it is, what it is called, and what is refused by name of file and key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from guardwire_server.core.errors import StartupError
from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.model.checkpoint import CheckpointKind, check_directory, open_checkpoint
from tests.model.checkpoints import (
    QUERY_CATEGORY_MAP,
    RESPONSE_CATEGORY_MAP,
    RISK_LEVEL_MAP,
    write_gen_checkpoint,
    write_stream_checkpoint,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def change_config(path: Path, **changes: Any) -> None:  # noqa: ANN401 (any JSON)
    values = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_stream_checkpoint(tmp_path / "tiny-stream", hidden=32, layers=1)


def test_a_stream_checkpoint(stream_path: Path) -> None:
    checkpoint = open_checkpoint(stream_path)
    assert checkpoint.kind is CheckpointKind.STREAM
    assert checkpoint.name == "tiny-stream"
    assert checkpoint.path == stream_path
    assert checkpoint.max_context_tokens == 8192
    assert checkpoint.vocabulary_size % 64 == 0
    assert checkpoint.guard_inner_size == 32
    assert checkpoint.eos_token_ids == ()
    assert not checkpoint.is_demo
    assert checkpoint.labels is not None
    assert checkpoint.labels.response.risk_levels == (RiskLevel.SAFE, RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL)
    assert checkpoint.labels.response.categories == tuple(Category)[:8]
    assert checkpoint.labels.query.categories == tuple(Category)


def test_a_gen_checkpoint(gen_path: Path) -> None:
    checkpoint = open_checkpoint(str(gen_path))
    assert checkpoint.kind is CheckpointKind.GEN
    assert checkpoint.max_context_tokens == 32768
    assert checkpoint.labels is None
    assert len(checkpoint.eos_token_ids) == 2
    assert checkpoint.config.tie_word_embeddings is True
    (gen_path / "generation_config.json").rename(gen_path / "kept")
    try:
        assert open_checkpoint(gen_path).eos_token_ids == checkpoint.eos_token_ids[:1]
    finally:
        (gen_path / "kept").rename(gen_path / "generation_config.json")


def test_the_backbone_is_built_from_the_config_alone(path: Path) -> None:
    config = open_checkpoint(path).config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (32, 96, 1)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
    assert config.rms_norm_eps == 1e-6
    assert config.pad_token_id is None
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5},
        {"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 500000}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
    ],
)
def test_both_spellings_of_rope_theta(path: Path, changes: dict[str, Any]) -> None:
    change_config(path, **changes)
    assert open_checkpoint(path).config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}


def test_the_demo_says_so(path: Path) -> None:
    change_config(path, guardwire_demo=True)
    assert open_checkpoint(path).is_demo


def test_the_gen_spellings_of_categories_are_labels_too(path: Path) -> None:
    names = ["jailbreak", "UNETHICAL ACTS", "Non-violent Illegal Acts", "Copyright Violation"]
    names += ["PII (Personally Identifiable Information)", "Politically Sensitive Topics", "Suicide & Self-Harm"]
    names += ["Sexual Content or Sexual Acts", " Violent "]
    change_config(path, query_category_map={str(row): name for row, name in enumerate(names)})
    labels = open_checkpoint(path).labels
    assert labels is not None
    assert labels.query.categories == tuple(reversed(Category))


class TestRevision:
    def test_the_hubs_commit_and_name(self, tmp_path: Path) -> None:
        path = tmp_path / "models--Qwen--Qwen3Guard-Stream-0.6B" / "snapshots" / COMMIT
        checkpoint = open_checkpoint(write_stream_checkpoint(path, layers=1))
        assert checkpoint.revision == COMMIT
        assert checkpoint.name == "Qwen/Qwen3Guard-Stream-0.6B"

    def test_a_directory_has_a_digest_of_its_files(self, tmp_path: Path) -> None:
        paths = [
            write_stream_checkpoint(tmp_path / "one", seed=1),
            write_stream_checkpoint(tmp_path / "again", seed=1),
            write_stream_checkpoint(tmp_path / "other-weights", seed=2),
            write_stream_checkpoint(tmp_path / "other-config", seed=1, config_changes={"guardwire_demo": True}),
            write_stream_checkpoint(tmp_path / "sharded", seed=1, sharded=True),
        ]
        revisions = {open_checkpoint(path).revision for path in paths}
        assert len(revisions) == 4
        assert all(revision.startswith("sha256:") and len(revision) == 19 for revision in revisions)

    def test_other_weights_of_the_same_shapes_differ_in_a_large_file(self, tmp_path: Path) -> None:
        path = write_stream_checkpoint(tmp_path, vocabulary_size=60_000)
        before = open_checkpoint(path).revision
        weights = path / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 15 * 7 : len(content) // 15 * 9] = bytes(len(content) // 15 * 2)
        weights.write_bytes(content)
        assert open_checkpoint(path).revision != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, r"architectures is \['LlamaForCausalLM'\]; served are \[\"Qwen3For"),
        ({"architectures": "absent"}, "architectures is None"),
        ({"hidden_size": "absent"}, "hidden_size must be a positive integer, found nothing"),
        ({"num_hidden_layers": "28"}, "num_hidden_layers must be a positive integer, found '28'"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, found 0"),
        ({"max_position_embeddings": True}, "max_position_embeddings must be a positive integer, found True"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps must be a positive number"),
        ({"rope_theta": "absent"}, "rope_theta must be a positive number, found nothing"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'; only 'default' is served"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
        ({"guard_inner_size": "wide"}, "guard_inner_size must be a positive integer"),
        ({"response_risk_level_map": "absent"}, "response_risk_level_map must be an object .* found nothing"),
        ({"query_category_map": ["Violent"]}, "query_category_map must be an object"),
        ({"query_risk_level_map": {"0": "Safe", "1": "Unsafe"}}, "query_risk_level_map must name all of"),
        ({"response_category_map": {}}, "response_category_map must be an object"),
        ({"response_category_map": {"0": "Violent", "2": "PII"}}, "has 2 entries but none for row 1"),
        ({"response_category_map": RESPONSE_CATEGORY_MAP | {"3": "Spam"}}, r"response_category_map\[3\] is 'Spam'"),
        ({"query_category_map": QUERY_CATEGORY_MAP | {"3": None}}, "query_category_map has 9 entries but none for row"),
        ({"query_category_map": QUERY_CATEGORY_MAP | {"3": 7}}, r"query_category_map\[3\] is 7"),
        ({"query_risk_level_map": RISK_LEVEL_MAP | {"2": "unsafe"}}, "names 'unsafe' a second time"),
    ],
)
def test_a_config_that_is_not_served(path: Path, changes: dict[str, Any], message: str) -> None:
    change_config(path, **changes)
    with pytest.raises(StartupError, match=message) as raised:
        open_checkpoint(path)
    assert raised.value.message.startswith(f"{path / 'config.json'}: ")
    with pytest.raises(StartupError) as checked:
        check_directory(path, CheckpointKind.STREAM)
    assert checked.value.message == raised.value.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(StartupError, match=rf"{name}: there is no such file; a checkpoint needs it"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b""])
def test_a_broken_config_is_named(path: Path, content: bytes) -> None:
    (path / "config.json").write_bytes(content)
    with pytest.raises(StartupError, match=r"config\.json: (is not valid JSON|must hold a JSON object)"):
        open_checkpoint(path)


def test_a_directory_in_place_of_a_file_is_named(path: Path) -> None:
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    with pytest.raises(StartupError, match=r"config\.json: cannot be read"):
        open_checkpoint(path)


def test_gen_needs_no_labels(tmp_path: Path) -> None:
    write_gen_checkpoint(tmp_path, config_changes={"guard_inner_size": "unread"}, dtype=torch.float32)
    assert open_checkpoint(tmp_path).guard_inner_size is None


def test_checking_a_directory_asks_for_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path / "model.safetensors.index.json")
    check_directory(path, CheckpointKind.STREAM)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(StartupError, match=r"there is neither model\.safetensors nor model\.safetensors\.index\.json"):
        check_directory(path, CheckpointKind.STREAM)
