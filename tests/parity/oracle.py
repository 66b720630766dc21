"""The oracle of Stream: what the model says by the plainest code there is. It shares no code with the server.

One full causal forward of transformers' own Qwen3Model over the whole id sequence, without a cache, and the heads
written out.

Source of the heads: Qwen3Guard technical report (arXiv 2510.14276), section 4.2, and the published state-dict keys.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import Qwen3Config, Qwen3Model

from tests.parity.chatml import Branch
from tests.parity.precision import FLOAT32

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

WIRE_RISK_LEVELS = {"Safe": 1, "Controversial": 2, "Unsafe": 3}
WIRE_CATEGORIES = {
    "Violent": 1,
    "Sexual Content": 2,
    "Self-Harm": 3,
    "Political": 4,
    "PII": 5,
    "Copyright": 6,
    "Illegal Acts": 7,
    "Unethical": 8,
    "Jailbreak": 9,
}
"""The config's label strings as numbers of the wire (protos/guardwire/v1/moderation.proto)."""

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Readings:
    """What the model says at N positions: `risk` [N, 3] in the wire's order, `category` [N, 9] (0 where unknown)."""

    risk: Floats
    category: Floats

    def at(self, rows: Sequence[int]) -> "Readings":
        """The readings at some of the positions."""
        return Readings(self.risk[rows], self.category[rows])

    def may_be_level(self, tie: float = FLOAT32.tie) -> Bools:
        """[N, 3]: the levels that are the most probable one, ties included."""
        return np.asarray(self.risk >= self.risk.max(axis=1, keepdims=True) - tie)

    def may_be_category(self, tie: float = FLOAT32.tie) -> Bools:
        """[N, 9]: likewise the categories."""
        return np.asarray(self.category >= self.category.max(axis=1, keepdims=True) - tie)


@dataclass(frozen=True)
class BranchReadings:
    """A branch's answer tokens and prompts."""

    answer: Readings
    prompts: Readings


class StreamOracle:
    """Qwen3Guard-Stream by the plainest code."""

    def __init__(self, directory: Path) -> None:
        self._values = json.loads((directory / "config.json").read_text())
        self._weights = {key: value.float() for key, value in load_file(directory / "model.safetensors").items()}
        config = Qwen3Config(**_backbone_values(self._values))
        self._backbone: Any = Qwen3Model(config)
        self._backbone.train(False)
        self._backbone.set_attn_implementation("sdpa")
        prefix = "model."
        backbone = {key.removeprefix(prefix): value for key, value in self._weights.items() if key.startswith(prefix)}
        self._backbone.load_state_dict(backbone, strict=True)

    @torch.inference_mode()
    def judge(self, branches: Sequence[Branch]) -> list[BranchReadings]:
        """Judges every branch."""
        hidden = iter(self._forward([ids for branch in branches for ids in branch.contexts]))
        judged = []
        for branch in branches:
            states = torch.cat(list(itertools.islice(hidden, len(branch.contexts))))
            answer = self._read(states[list(branch.positions)], "")
            judged.append(BranchReadings(answer, prompts=self._read(states[list(branch.queries)], "query_")))
        return judged

    def _forward(self, contexts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Hidden states of every context; rows padded at their right end, where a causal model does not look."""
        hidden: dict[int, torch.Tensor] = {}
        by_length = sorted(range(len(contexts)), key=lambda i: len(contexts[i]))
        for start in range(0, len(by_length), _BATCH_SIZE):
            rows = by_length[start : start + _BATCH_SIZE]
            longest = max(len(contexts[row]) for row in rows)
            ids = torch.tensor([[*contexts[row], *[0] * (longest - len(contexts[row]))] for row in rows])
            states = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
            hidden.update((row, one[: len(contexts[row])]) for row, one in zip(rows, states, strict=True))
        return [hidden[row] for row in range(len(contexts))]

    def _read(self, hidden: torch.Tensor, prefix: str) -> Readings:
        weights = self._weights
        x = linear(hidden, weights[f"{prefix}risk_level_category_pre.weight"])
        scale = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + self._values["rms_norm_eps"])
        x = x * scale * weights[f"{prefix}risk_level_category_layernorm.weight"]
        risk = torch.softmax(linear(x, weights[f"{prefix}risk_level_head.weight"]), dim=-1)
        category = torch.softmax(linear(x, weights[f"{prefix}category_head.weight"]), dim=-1)
        side = "query" if prefix else "response"
        return Readings(
            risk=_in_wire_order(risk, self._values[f"{side}_risk_level_map"], WIRE_RISK_LEVELS),
            category=_in_wire_order(category, self._values[f"{side}_category_map"], WIRE_CATEGORIES),
        )


def _backbone_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a Qwen3 backbone has."""
    names = (
        "attention_bias",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    )
    rope = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    return {name: values[name] for name in names} | {"rope_parameters": rope}


def _in_wire_order(probabilities: torch.Tensor, labels: Mapping[str, str], numbers: Mapping[str, int]) -> Floats:
    """Columns by the wire's numbers, from 1 on."""
    ordered = np.zeros((len(probabilities), len(numbers)), dtype=np.float32)
    for row, name in labels.items():
        ordered[:, numbers[name] - 1] = probabilities[:, int(row)].numpy()
    return ordered
