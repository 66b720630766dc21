"""The Stream model: its size, its numerics, and the translation of its labels."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_config import HeadLabels, StreamLabels
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.stream_guard import GuardNorm, StreamGuard
from tests.model.checkpoints import QUERY_CATEGORY_MAP, RESPONSE_CATEGORY_MAP, RISK_LEVEL_MAP, write_stream_checkpoint

OFFICIAL_RISKS = (RiskLevel.SAFE, RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL)
OFFICIAL_LABELS = StreamLabels(
    response=HeadLabels(OFFICIAL_RISKS, tuple(Category)[:8]), query=HeadLabels(OFFICIAL_RISKS, tuple(Category))
)


@pytest.mark.parametrize(("num_layers", "num_parameters"), [(14, 376_878_080), (28, 597_111_296)])
def test_the_published_model_has_as_many_parameters(num_layers: int, num_parameters: int) -> None:
    """The 0.6B checkpoint, whole and cut in half."""
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        guard = StreamGuard(config, 512, OFFICIAL_LABELS)
    assert sum(parameter.numel() for parameter in guard.parameters()) == num_parameters


@pytest.fixture
def guard(stream_path: Path) -> StreamGuard:
    return load_stream(open_checkpoint(stream_path), torch.device("cpu"), torch.float32)


def hidden_states(num_tokens: int = 40, hidden: int = 64) -> torch.Tensor:
    return torch.randn(num_tokens, hidden, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_that_of_the_backbone(dtype: torch.dtype) -> None:
    ours, theirs = GuardNorm(64, 1e-6), Qwen3RMSNorm(64, 1e-6)
    weight = torch.rand(64, generator=torch.Generator().manual_seed(2))
    for norm in (ours, theirs):
        norm.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    x = 7 * hidden_states().to(dtype)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("turn", "num_categories"), [("", 8), ("query_", 9)])
def test_the_heads_compute_the_formula(guard: StreamGuard, turn: str, num_categories: int) -> None:
    weights = guard.state_dict()
    hidden = hidden_states()
    x = hidden @ weights[f"{turn}risk_level_category_pre.weight"].T
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{turn}risk_level_category_layernorm.weight"]
    risk = (x @ weights[f"{turn}risk_level_head.weight"].T).softmax(-1)
    category = (x @ weights[f"{turn}category_head.weight"].T).softmax(-1)
    judge = guard.query_probabilities if turn else guard.response_probabilities
    risk_out, category_out = judge(hidden)
    torch.testing.assert_close(risk_out, risk[:, [0, 2, 1]])  # Safe, Unsafe, Controversial as stored
    torch.testing.assert_close(category_out[:, :num_categories], category)
    assert (category_out[:, num_categories:] == 0).all()
    assert (risk_out.shape, category_out.shape) == ((40, 3), (40, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_float32_and_sum_to_1(stream_path: Path, dtype: torch.dtype) -> None:
    guard = load_stream(open_checkpoint(stream_path), torch.device("cpu"), dtype)
    for judge in (guard.response_probabilities, guard.query_probabilities):
        for probabilities in judge(hidden_states().to(dtype)):
            assert probabilities.dtype == torch.float32
            torch.testing.assert_close(probabilities.sum(-1), torch.ones(40))


def test_no_token_is_no_row(guard: StreamGuard) -> None:
    risk, category = guard.response_probabilities(hidden_states(0))
    assert (risk.shape, category.shape) == ((0, 3), (0, 9))


def test_positions_are_judged_one_by_one(guard: StreamGuard) -> None:
    hidden = hidden_states()
    together = guard.response_probabilities(hidden)
    alone = [guard.response_probabilities(row.unsqueeze(0)) for row in hidden]
    for index, probabilities in enumerate(together):
        torch.testing.assert_close(torch.cat([pair[index] for pair in alone]), probabilities)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    """A checkpoint with its rows and its maps permuted alike is the same model."""
    plain = load(write_stream_checkpoint(tmp_path / "plain"))
    orders = {"risk": [2, 0, 1], "response": [5, 0, 7, 1, 6, 2, 4, 3], "query": [8, 3, 0, 5, 1, 7, 2, 6, 4]}
    tensors = plain.state_dict()
    permuted = write_stream_checkpoint(
        tmp_path / "permuted",
        config_changes={
            "response_risk_level_map": permute(RISK_LEVEL_MAP, orders["risk"]),
            "query_risk_level_map": permute(RISK_LEVEL_MAP, orders["risk"]),
            "response_category_map": permute(RESPONSE_CATEGORY_MAP, orders["response"]),
            "query_category_map": permute(QUERY_CATEGORY_MAP, orders["query"]),
        },
        extra_tensors={
            "risk_level_head.weight": tensors["risk_level_head.weight"][orders["risk"]],
            "query_risk_level_head.weight": tensors["query_risk_level_head.weight"][orders["risk"]],
            "category_head.weight": tensors["category_head.weight"][orders["response"]],
            "query_category_head.weight": tensors["query_category_head.weight"][orders["query"]],
        },
    )
    assert json.loads((permuted / "config.json").read_text())["query_category_map"]["0"] == "Jailbreak"
    other, hidden = load(permuted), hidden_states()
    for ours, theirs in (
        (plain.response_probabilities(hidden), other.response_probabilities(hidden)),
        (plain.query_probabilities(hidden), other.query_probabilities(hidden)),
    ):
        torch.testing.assert_close(ours, theirs)


def load(path: Path) -> StreamGuard:
    return load_stream(open_checkpoint(path), torch.device("cpu"), torch.float32)


def permute(labels: dict[str, str], order: list[int]) -> dict[str, str]:
    return {str(row): labels[str(old)] for row, old in enumerate(order)}


def test_a_small_model_is_lively(guard: StreamGuard) -> None:
    """Tests of the engine compare labels: they would prove nothing if all tokens had the same."""
    ids = torch.randint(0, 400, (1, 200), generator=torch.Generator().manual_seed(4))
    hidden = guard.model(input_ids=ids).last_hidden_state[0]
    for risk, _ in (guard.response_probabilities(hidden), guard.query_probabilities(hidden)):
        assert torch.bincount(risk.argmax(-1), minlength=3).min() > 10
