"""Qwen3Guard-Stream: a Qwen3 backbone with two pairs of classification heads.

Shapes: N tokens, H hidden size, G width of the heads, R = 3 risk levels, C categories of a head (8 for answers, 9 for
user turns in the published checkpoints).

The heads judge a hidden state taken **after** the backbone's final norm, token by token:
    x = RMSNorm(h Wpre^T);  risk = softmax(x Wrisk^T);  category = softmax(x Wcategory^T)
without an activation in between. The `query_*` heads, of the same form, judge a user turn at its closing token.

Source: Qwen3Guard technical report (arXiv 2510.14276), section 4.2, and the state-dict keys of the published
checkpoints, which the attribute names here repeat.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model

from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.model.checkpoint_config import HeadLabels, StreamLabels


class GuardNorm(nn.Module):
    """RMSNorm with the numerics of the backbone's own norms: computed in float32, rounded, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension; shape and dtype stay."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        scaled: torch.Tensor = self.weight * wide.to(x.dtype)
        return scaled


class StreamGuard(nn.Module):
    """The whole model: `model` is the backbone, the rest are the heads, named as in the state dict.

    Owned by whoever runs the forward passes (the device thread). Immutable once loaded: no gradients, no buffers that
    a call changes, so calls may come from any thread.
    """

    _response_risk_order: torch.Tensor
    _response_category_order: torch.Tensor
    _query_risk_order: torch.Tensor
    _query_category_order: torch.Tensor

    def __init__(self, config: Qwen3Config, guard_inner_size: int, labels: StreamLabels) -> None:
        """Makes the modules with arbitrary weights, on the default device.

        Args:
            config: The backbone's numbers.
            guard_inner_size: G.
            labels: What the heads' rows mean.
        """
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.config = config
        self.model = Qwen3Model(config)
        self.risk_level_category_pre = nn.Linear(hidden, guard_inner_size, bias=False)
        self.risk_level_category_layernorm = GuardNorm(guard_inner_size, eps)
        self.risk_level_head = nn.Linear(guard_inner_size, len(labels.response.risk_levels), bias=False)
        self.category_head = nn.Linear(guard_inner_size, len(labels.response.categories), bias=False)
        self.query_risk_level_category_pre = nn.Linear(hidden, guard_inner_size, bias=False)
        self.query_risk_level_category_layernorm = GuardNorm(guard_inner_size, eps)
        self.query_risk_level_head = nn.Linear(guard_inner_size, len(labels.query.risk_levels), bias=False)
        self.query_category_head = nn.Linear(guard_inner_size, len(labels.query.categories), bias=False)
        self.set_labels(labels)

    def set_labels(self, labels: StreamLabels) -> None:
        """Places, on the heads' device, the orders that bring a head's rows into this project's canonical order."""
        for turn, head in (("response", labels.response), ("query", labels.query)):
            risk_order, category_order = _canonical_order(head)
            device = self.risk_level_head.weight.device
            for name, order in (("risk", risk_order), ("category", category_order)):
                self.register_buffer(f"_{turn}_{name}_order", torch.tensor(order, device=device), persistent=False)

    def widen_heads(self) -> None:
        """Computes the heads in float32, whatever the backbone's dtype; to be called before anything is judged."""
        for name, child in self.named_children():
            if name != "model":
                child.float()

    @property
    def guard_inner_size(self) -> int:
        """G: the width of the heads."""
        return self.risk_level_category_pre.out_features

    def response_probabilities(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judges answer tokens.

        Args:
            hidden: [N, H], on the weights' device: the backbone's output after its final norm.

        Returns:
            Risk [N, 3], float32, in the order SAFE, CONTROVERSIAL, UNSAFE, and category [N, 9], float32, column c of
            `Category(c + 1)`, 0 for a category that the head does not have. Rows sum to 1. The category means nothing
            where the risk is SAFE: there is no class for "none".
        """
        hidden = hidden.to(self.risk_level_category_pre.weight.dtype)
        x = self.risk_level_category_layernorm(self.risk_level_category_pre(hidden))
        return (
            _probabilities(self.risk_level_head(x), self._response_risk_order),
            _probabilities(self.category_head(x), self._response_category_order),
        )

    def query_probabilities(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judges user turns, at their closing `<|im_end|>`; otherwise as `response_probabilities`."""
        hidden = hidden.to(self.query_risk_level_category_pre.weight.dtype)
        x = self.query_risk_level_category_layernorm(self.query_risk_level_category_pre(hidden))
        return (
            _probabilities(self.query_risk_level_head(x), self._query_risk_order),
            _probabilities(self.query_category_head(x), self._query_category_order),
        )


def _probabilities(logits: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Softmax over a head's rows [N, rows], in float32, as columns of the canonical order [N, len(order)].

    `order` holds for each canonical label its row, or `rows` (one past the end) where the head lacks the label.
    """
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
    return functional.pad(probabilities, (0, 1)).index_select(-1, order)


def _canonical_order(labels: HeadLabels) -> tuple[list[int], list[int]]:
    risk_rows = [labels.risk_levels.index(level) for level in RiskLevel]
    absent = len(labels.categories)
    category_rows = [
        labels.categories.index(category) if category in labels.categories else absent for category in Category
    ]
    return risk_rows, category_rows
