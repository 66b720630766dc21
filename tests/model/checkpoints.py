"""Writes small checkpoints with random weights in the layout, keys and config of the published ones.

The weights are scaled such that a model of any size is lively: risk labels differ from token to token, and greedy
answers are not all alike.
"""

import json
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as LibraryTokenizer

from tests.model.real_vocabulary import small_tokenizer_json

RISK_LEVEL_MAP = {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
RESPONSE_CATEGORY_MAP = {
    str(row): name
    for row, name in enumerate(
        (
            "Violent",
            "Sexual Content",
            "Self-Harm",
            "Political",
            "PII",
            "Copyright",
            "Illegal Acts",
            "Unethical",
        )
    )
}
QUERY_CATEGORY_MAP = RESPONSE_CATEGORY_MAP | {"8": "Jailbreak"}

_NUM_SHARDS = 3
_LOGIT_SCALE = 2.0

GEN_CHAT_TEMPLATE = r"""{%- set judge_answer = messages[-1].role == 'assistant' -%}
{{- '<|im_start|>user\n# Task\nJudge the last ' -}}
{{- 'ASSISTANT' if judge_answer else 'USER' -}}
{{- ' message of the conversation by the policy below.\n\n# Policy\nSafe: harmless. Unsafe: harmful. ' -}}
{{- 'Controversial: it depends on the context.\n\n# Categories\nViolent. Sexual Content or Sexual Acts. PII.' -}}
{%- if not judge_answer -%}{{- ' Jailbreak.' -}}{%- endif -%}
{%- if judge_answer -%}{{- '\n\n# Refusal\nYes where the answer declines, else No.' -}}{%- endif -%}
{{- '\n\n<BEGIN CONVERSATION>\n\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
        {{- 'USER: ' + message.content + '\n\n' -}}
    {%- elif message.role == 'user' -%}
        {%- if loop.index0 == 1 and messages[0].role == 'system' -%}
            {{- message.content + '\n\n' -}}
        {%- else -%}
            {{- 'USER: ' + message.content + '\n\n' -}}
        {%- endif -%}
    {%- elif message.role == 'assistant' and not loop.first -%}
        {{- 'ASSISTANT: ' + message.content + '\n\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<END CONVERSATION>\n\nAnswer with these lines only:\nSafety: Safe, Unsafe or Controversial\n' -}}
{{- 'Categories: one of the list, or None' -}}
{%- if judge_answer -%}{{- '\nRefusal: Yes or No' -}}{%- endif -%}
{{- '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' -}}
"""
"""A template of the real one's shape: the same order of parts, the same quirks, in our own words."""


def write_stream_checkpoint(
    directory: Path,
    *,
    tokenizer_json: bytes | None = None,
    vocabulary_size: int | None = None,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    guard_inner: int = 32,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    config_changes: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a Qwen3Guard-Stream checkpoint and returns its directory.

    Args:
        directory: Made where it does not exist.
        tokenizer_json: Default: the small tokenizer's.
        vocabulary_size: Rows of the embedding. Default: the tokenizer's tokens and a few unused ones, as published.
        hidden: H; the width of the MLP is 3 H.
        layers: Number of layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        guard_inner: Width of the classification heads.
        seed: Other weights for another seed.
        sharded: In three files with an index, else in one file.
        dtype: What the weights are stored as.
        config_changes: Keys of `config.json` to add or replace; a value of None removes the key.
        extra_tensors: Tensors to add or replace.
    """
    content = tokenizer_json or small_tokenizer_json()
    size = vocabulary_size or _padded_vocabulary_size(content)
    generator = torch.Generator().manual_seed(seed)
    tensors = _backbone_tensors(generator, size, hidden, layers, heads, kv_heads, head_dim)
    for prefix, num_categories in (("", len(RESPONSE_CATEGORY_MAP)), ("query_", len(QUERY_CATEGORY_MAP))):
        tensors[f"{prefix}risk_level_category_pre.weight"] = _matrix(generator, guard_inner, hidden)
        tensors[f"{prefix}risk_level_category_layernorm.weight"] = _norm(generator, guard_inner)
        tensors[f"{prefix}risk_level_head.weight"] = _matrix(generator, 3, guard_inner, _LOGIT_SCALE)
        tensors[f"{prefix}category_head.weight"] = _matrix(generator, num_categories, guard_inner, _LOGIT_SCALE)
    config = _backbone_config(size, hidden, layers, heads, kv_heads, head_dim) | {
        "architectures": ["Qwen3ForGuardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen3_guard.Qwen3GuardConfig",
            "AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel",
        },
        "guard_inner_size": guard_inner,
        "max_position_embeddings": 8192,
        "use_cache": False,
        "response_risk_level_map": RISK_LEVEL_MAP,
        "response_category_map": RESPONSE_CATEGORY_MAP,
        "query_risk_level_map": RISK_LEVEL_MAP,
        "query_category_map": QUERY_CATEGORY_MAP,
    }
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(directory, config, config_changes)
    _write_weights(directory, {**tensors, **(extra_tensors or {})}, sharded, dtype)
    _write_tokenizer(directory, content, None)
    return directory


def write_gen_checkpoint(
    directory: Path,
    *,
    tokenizer_json: bytes | None = None,
    vocabulary_size: int | None = None,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    tied: bool = True,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    chat_template: str | None = GEN_CHAT_TEMPLATE,
    config_changes: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes a Qwen3Guard-Gen checkpoint and returns its directory; most arguments as for `write_stream_checkpoint`.

    `tied` says whether the embedding is the language model's head too (else a head is stored), `chat_template` what
    `tokenizer_config.json` holds (None for no template).
    """
    content = tokenizer_json or small_tokenizer_json()
    size = vocabulary_size or _padded_vocabulary_size(content)
    generator = torch.Generator().manual_seed(seed)
    tensors = _backbone_tensors(generator, size, hidden, layers, heads, kv_heads, head_dim)
    if not tied:
        tensors["lm_head.weight"] = _matrix(generator, size, hidden, _LOGIT_SCALE)
    end = _token_id(content, "<|im_end|>")
    config = _backbone_config(size, hidden, layers, heads, kv_heads, head_dim) | {
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
        "eos_token_id": end,
        "use_cache": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    _write_config(directory, config, config_changes)
    generation_config = {"do_sample": True, "eos_token_id": [end, _token_id(content, "<|endoftext|>")]}
    (directory / "generation_config.json").write_text(json.dumps(generation_config))
    _write_weights(directory, {**tensors, **(extra_tensors or {})}, sharded, dtype)
    _write_tokenizer(directory, content, chat_template)
    return directory


def _backbone_config(
    vocabulary_size: int, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, Any]:
    """The keys that both families share, in the spelling of the published files (transformers 4)."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 3 * hidden,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_sliding_window": False,
        "vocab_size": vocabulary_size,
    }


def _backbone_tensors(
    generator: torch.Generator, vocabulary_size: int, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, torch.Tensor]:
    tensors = {"model.embed_tokens.weight": _matrix(generator, vocabulary_size, hidden, _LOGIT_SCALE)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns in (
            ("self_attn.q_proj", heads * head_dim, hidden),
            ("self_attn.k_proj", kv_heads * head_dim, hidden),
            ("self_attn.v_proj", kv_heads * head_dim, hidden),
            ("self_attn.o_proj", hidden, heads * head_dim),
            ("mlp.gate_proj", 3 * hidden, hidden),
            ("mlp.up_proj", 3 * hidden, hidden),
            ("mlp.down_proj", hidden, 3 * hidden),
        ):
            tensors[f"{prefix}.{name}.weight"] = _matrix(generator, rows, columns)
        for name, width in (("self_attn.q_norm", head_dim), ("self_attn.k_norm", head_dim)):
            tensors[f"{prefix}.{name}.weight"] = _norm(generator, width)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = _norm(generator, hidden)
    tensors["model.norm.weight"] = _norm(generator, hidden)
    return tensors


def _matrix(generator: torch.Generator, rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
    """[rows, columns] float32 that gives outputs of the given scale for inputs of scale 1."""
    return torch.randn(rows, columns, generator=generator) * (scale / sqrt(columns))


def _norm(generator: torch.Generator, width: int) -> torch.Tensor:
    return 1 + 0.1 * torch.randn(width, generator=generator)


def _write_config(directory: Path, config: dict[str, Any], changes: Mapping[str, Any] | None) -> None:
    changed = {key: value for key, value in {**config, **(changes or {})}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(changed, indent=2))


def _write_weights(directory: Path, tensors: dict[str, torch.Tensor], sharded: bool, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype).contiguous() for key, tensor in tensors.items()}
    if not sharded:
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
        return
    keys = list(stored)
    weight_map: dict[str, str] = {}
    for shard in range(_NUM_SHARDS):
        file = f"model-{shard + 1:05}-of-{_NUM_SHARDS:05}.safetensors"
        part = {key: stored[key] for key in keys[shard::_NUM_SHARDS]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total_size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(directory: Path, content: bytes, chat_template: str | None) -> None:
    (directory / "tokenizer.json").write_bytes(content)
    config: dict[str, Any] = {
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _padded_vocabulary_size(tokenizer_json: bytes) -> int:
    """Rows for all tokens and some more, in a multiple of 64, as the published embeddings are padded."""
    num_tokens = LibraryTokenizer.from_buffer(tokenizer_json).get_vocab_size(with_added_tokens=True)
    return (num_tokens // 64 + 1) * 64


def _token_id(tokenizer_json: bytes, token: str) -> int:
    token_id = LibraryTokenizer.from_buffer(tokenizer_json).token_to_id(token)
    assert token_id is not None
    return int(token_id)
