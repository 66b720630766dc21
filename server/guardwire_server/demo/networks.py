"""The two demo networks and their files, in the layout of the published checkpoints."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.demo.labels import CATEGORY_NAMES, NUM_RESPONSE_CATEGORIES, RISK_NAMES
from guardwire_server.model import checkpoint_weights
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_config import HeadLabels, StreamLabels
from guardwire_server.model.stream_guard import StreamGuard

# Shapes: B sequences, T tokens, H hidden size, G guard_inner_size.

_ROPE_THETA = 1_000_000.0
_GUARD_INNER_SIZE = 192

_RISK_LEVELS = tuple(RiskLevel[name.upper()] for name in RISK_NAMES)
STREAM_LABELS = StreamLabels(
    response=HeadLabels(_RISK_LEVELS, tuple(Category)[:NUM_RESPONSE_CATEGORIES]),
    query=HeadLabels(_RISK_LEVELS, tuple(Category)),
)
"""What the rows of the heads mean: the class indices of labels.py, whose categories are in Category's order."""


def backbone_config(vocab_size: int, max_position_embeddings: int) -> Qwen3Config:
    """Shape of both demo backbones: a Qwen3 in miniature."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=224,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        initializer_range=0.02,
        use_cache=False,
    )


def new_stream_guard(vocab_size: int) -> StreamGuard:
    """The stream network of the server, with fresh weights."""
    guard = StreamGuard(backbone_config(vocab_size, max_position_embeddings=8192), _GUARD_INNER_SIZE, STREAM_LABELS)
    for head in (guard.risk_level_category_pre, guard.query_risk_level_category_pre):
        nn.init.normal_(head.weight, std=0.05)
    return guard


def hidden_states(guard: StreamGuard, ids: Tensor) -> Tensor:
    """Backbone output after its final norm: ids [B, T] int64 → [B, T, H]. Right padding needs no mask."""
    output: Tensor = guard.model(input_ids=ids, use_cache=False).last_hidden_state
    return output


def query_logits(guard: StreamGuard, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of risk [..., 3] and category [..., 9] of a user turn, by class index."""
    inner = guard.query_risk_level_category_layernorm(guard.query_risk_level_category_pre(hidden))
    return guard.query_risk_level_head(inner), guard.query_category_head(inner)


def answer_logits(guard: StreamGuard, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of risk [..., 3] and category [..., 8] of assistant tokens, by class index."""
    inner = guard.risk_level_category_layernorm(guard.risk_level_category_pre(hidden))
    return guard.risk_level_head(inner), guard.category_head(inner)


def save_stream(network: StreamGuard, directory: Path) -> None:
    """Writes config.json and model.safetensors (bfloat16)."""
    config = _config_fields(network.model.config)
    config.update(
        architectures=["Qwen3ForGuardModel"],
        auto_map={
            "AutoConfig": "configuration_qwen3_guard.Qwen3GuardConfig",
            "AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel",
        },
        guard_inner_size=_GUARD_INNER_SIZE,
        response_risk_level_map=_label_map(RISK_NAMES),
        response_category_map=_label_map(CATEGORY_NAMES[:NUM_RESPONSE_CATEGORIES]),
        query_risk_level_map=_label_map(RISK_NAMES),
        query_category_map=_label_map(CATEGORY_NAMES),
    )
    _write(network.state_dict(), config, directory)


def save_gen(network: Qwen3ForCausalLM, eos_token_ids: list[int], directory: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bfloat16; no lm_head, it is tied)."""
    config = _config_fields(network.config)
    config.update(architectures=["Qwen3ForCausalLM"], eos_token_id=eos_token_ids[0], use_cache=True)
    state = {name: tensor for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    _write(state, config, directory)
    generation = {"do_sample": False, "eos_token_id": eos_token_ids, "pad_token_id": eos_token_ids[-1]}
    _write_json(generation, directory / "generation_config.json")


def load_stream(directory: Path) -> StreamGuard:
    """Reads the saved weights back, as float32, the way the server does."""
    return checkpoint_weights.load_stream(open_checkpoint(directory), torch.device("cpu"), torch.float32)


def load_gen(directory: Path) -> Qwen3ForCausalLM:
    """Reads the saved weights back, as float32, ready for evaluation."""
    network: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    network.eval()  # type: ignore[no-untyped-call]
    return network


def _config_fields(config: Qwen3Config) -> dict[str, object]:
    """The fields of a published Qwen3 config.json, with both spellings that transformers 4 and 5 read."""
    return {
        "model_type": "qwen3",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": _ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA},
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "guardwire_demo": True,  # the server warns at every start
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def _label_map(names: tuple[str, ...]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(names)}


def _write(state: dict[str, Tensor], config: dict[str, object], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(config, directory / "config.json")
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    weights = directory / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors creates it for its owner alone


def _write_json(fields: dict[str, object], path: Path) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
