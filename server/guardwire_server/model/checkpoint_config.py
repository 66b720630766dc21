"""Reads what a checkpoint's JSON files say, and refuses what this server would get wrong.

The architecture is built from the numbers in `config.json` alone: remote code (`auto_map`) is never looked at, and keys
that only steer transformers' own generation (`use_cache`, `pad_token_id`, `torch_dtype`) have no effect here.

Importing this brings no torch, which takes seconds: a mistake in a checkpoint should be told at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from guardwire_server.core.errors import StartupError
from guardwire_server.core.verdict import CATEGORY_NAMES, Category, RiskLevel

if TYPE_CHECKING:
    from transformers import Qwen3Config

LabelT = TypeVar("LabelT")

_RISK_LEVELS = {level.name.lower(): level for level in RiskLevel}

_CONFIG_CATEGORY_NAMES: dict[str, Category] = {
    "violent": Category.VIOLENT,
    "sexual content": Category.SEXUAL_CONTENT,
    "self-harm": Category.SUICIDE_AND_SELF_HARM,
    "political": Category.POLITICALLY_SENSITIVE_TOPICS,
    "pii": Category.PII,
    "copyright": Category.COPYRIGHT_VIOLATION,
    "illegal acts": Category.NON_VIOLENT_ILLEGAL_ACTS,
    "unethical": Category.UNETHICAL_ACTS,
    "jailbreak": Category.JAILBREAK,
}
"""How the config of Qwen3Guard-Stream abbreviates the categories; the Gen spellings are accepted beside them."""

_CATEGORIES = _CONFIG_CATEGORY_NAMES | {name.lower(): category for category, name in CATEGORY_NAMES.items()}


@dataclass(frozen=True, slots=True)
class HeadLabels:
    """What the rows of one pair of classification heads mean: entry i names row i.

    `risk_levels` holds each of the three levels once; `categories` holds some of the nine, each at most once.
    """

    risk_levels: tuple[RiskLevel, ...]
    categories: tuple[Category, ...]


@dataclass(frozen=True, slots=True)
class StreamLabels:
    """The labels of the heads that judge answers (`response`) and user turns (`query`)."""

    response: HeadLabels
    query: HeadLabels


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file whose top is an object.

    Raises:
        StartupError: The file is missing, unreadable, or not a JSON object; the message names it.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StartupError(f"{path}: there is no such file; a checkpoint needs it") from None
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # bad JSON and bad UTF-8
        raise StartupError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise StartupError(f"{path}: must hold a JSON object, found {type(values).__name__}")
    return values


def parse_backbone_config(values: dict[str, Any], path: Path) -> "Qwen3Config":
    """Builds the backbone's configuration from the values of the `config.json` at `path`; imports torch.

    Raises:
        StartupError: As `parse_backbone_numbers`.
    """
    numbers = parse_backbone_numbers(values, path)
    from transformers import Qwen3Config

    return Qwen3Config(**numbers, use_cache=False)


def parse_backbone_numbers(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """What makes the backbone, by the names of Qwen3Config's arguments.

    Accepts `rope_theta` at the top (transformers 4) and inside `rope_parameters` (transformers 5).

    Raises:
        StartupError: A key is missing or has a value outside what Qwen3Guard uses; the message names file and key.
    """
    _refuse_foreign_features(values, path)
    num_heads = _positive_int(values, "num_attention_heads", path)
    hidden_size = _positive_int(values, "hidden_size", path)
    num_kv_heads = _positive_int(values, "num_key_value_heads", path)
    if num_heads % num_kv_heads:
        raise StartupError(
            f"{path}: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = _positive_int(values, "head_dim", path) if "head_dim" in values else hidden_size // num_heads
    return {
        "vocab_size": _positive_int(values, "vocab_size", path),
        "hidden_size": hidden_size,
        "intermediate_size": _positive_int(values, "intermediate_size", path),
        "num_hidden_layers": _positive_int(values, "num_hidden_layers", path),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": _positive_int(values, "max_position_embeddings", path),
        "rms_norm_eps": _positive_float(values, "rms_norm_eps", 1e-6, path),
        "tie_word_embeddings": values.get("tie_word_embeddings") is True,
        "rope_parameters": {"rope_type": "default", "rope_theta": _rope_theta(values, path)},
    }


def parse_stream_labels(values: dict[str, Any], path: Path) -> StreamLabels:
    """Reads the four label maps of a Stream checkpoint.

    Raises:
        StartupError: A map is missing, has gaps, or names something unknown or twice; the message names file and key.
    """
    return StreamLabels(response=_head_labels(values, "response", path), query=_head_labels(values, "query", path))


def parse_guard_inner_size(values: dict[str, Any], path: Path) -> int | None:
    """The width of the classification heads, or None where the config leaves it to the weights."""
    return _positive_int(values, "guard_inner_size", path) if values.get("guard_inner_size") is not None else None


def parse_eos_token_ids(values: dict[str, Any]) -> tuple[int, ...]:
    """The `eos_token_id` of a config or generation_config: an id, a list of ids, or nothing."""
    ids = values.get("eos_token_id")
    listed = ids if isinstance(ids, list) else [ids]
    return tuple(token_id for token_id in listed if isinstance(token_id, int) and not isinstance(token_id, bool))


def _refuse_foreign_features(values: dict[str, Any], path: Path) -> None:
    """Refuses Qwen3 variations that no Qwen3Guard checkpoint has, instead of computing something else."""
    layer_types = values.get("layer_types") or ["full_attention"]
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    for key, value, served in (
        ("hidden_act", values.get("hidden_act", "silu"), "silu"),
        ("attention_bias", bool(values.get("attention_bias", False)), False),
        ("use_sliding_window", bool(values.get("use_sliding_window", False)), False),
        ("layer_types", sorted(set(layer_types)) if isinstance(layer_types, list) else layer_types, ["full_attention"]),
        ("rope_type", rope_type, "default"),
        ("quantization_config", values.get("quantization_config"), None),
    ):
        if value != served:
            raise StartupError(f"{path}: {key} is {value!r}; only {served!r} is served")


def _rope_theta(values: dict[str, Any], path: Path) -> float:
    parameters = values.get("rope_parameters")
    nested = parameters if isinstance(parameters, dict) and "rope_theta" in parameters else values
    return _positive_float(nested, "rope_theta", None, path)


def _positive_int(values: dict[str, Any], key: str, path: Path) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise StartupError(f"{path}: {key} must be a positive integer, found {_found(values, key)}")
    return value


def _positive_float(values: dict[str, Any], key: str, default: float | None, path: Path) -> float:
    value = values.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise StartupError(f"{path}: {key} must be a positive number, found {_found(values, key)}")
    return float(value)


def _found(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"


def _head_labels(values: dict[str, Any], turn: str, path: Path) -> HeadLabels:
    risk_levels = _labels(values, f"{turn}_risk_level_map", _RISK_LEVELS, path)
    if len(risk_levels) != len(RiskLevel):
        raise StartupError(
            f"{path}: {turn}_risk_level_map must name all of {', '.join(_RISK_LEVELS)}; it names {len(risk_levels)}"
        )
    return HeadLabels(risk_levels, _labels(values, f"{turn}_category_map", _CATEGORIES, path))


def _labels(values: dict[str, Any], key: str, known: dict[str, LabelT], path: Path) -> tuple[LabelT, ...]:
    """The labels of one map in row order; its keys are the row numbers 0, 1, … as strings."""
    rows = values.get(key)
    if not isinstance(rows, dict) or not rows:
        raise StartupError(f"{path}: {key} must be an object of row numbers and names, found {_found(values, key)}")
    labels: list[LabelT] = []
    for row in range(len(rows)):
        name = rows.get(str(row))
        if name is None:
            raise StartupError(f"{path}: {key} has {len(rows)} entries but none for row {row}")
        label = known.get(name.strip().lower()) if isinstance(name, str) else None
        if label is None:
            raise StartupError(f"{path}: {key}[{row}] is {name!r}, which is none of: {', '.join(known)}")
        if label in labels:
            raise StartupError(f"{path}: {key}[{row}] names {name!r} a second time")
        labels.append(label)
    return tuple(labels)
