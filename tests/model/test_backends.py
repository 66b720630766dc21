"""What a step reads: labels, probabilities and next tokens, from the right rows and in the right order."""

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Read, StepPlan
from guardwire_server.core.verdict import Category, RiskLevel, VerdictArrays
from guardwire_server.model.backbone import Backbone
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_weights import load_gen, load_stream
from guardwire_server.model.gen_backend import TorchGenBackend
from guardwire_server.model.stream_backend import TorchStreamBackend, pack_verdicts
from tests.model.checkpoints import write_gen_checkpoint

CPU = torch.device("cpu")
N, R, Q, L = Read.NOTHING, Read.RESPONSE, Read.QUERY, Read.LOGITS
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of probabilities against float32; on the checkpoint here, transformers' own bfloat16 is 0.026 away from it."""


def category_row(**probabilities: float) -> list[float]:
    return [probabilities.get(category.name.lower(), 0.0) for category in Category]


def test_the_most_probable_level_and_category_are_told() -> None:
    risk = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.1, 0.7]])
    category = torch.tensor([category_row(pii=0.9), category_row(pii=0.6, violent=0.4), category_row(jailbreak=1.0)])
    packed = pack_verdicts(risk, category)
    assert list(packed.risk_levels) == [RiskLevel.SAFE, RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE]
    assert list(packed.categories) == [0, Category.PII, Category.JAILBREAK]
    assert list(packed.category_probabilities) == pytest.approx([0.0, 0.6, 1.0])
    assert list(packed.probabilities) == pytest.approx(risk.flatten().tolist())
    types = (packed.risk_levels, packed.probabilities, packed.categories, packed.category_probabilities)
    assert [values.typecode for values in types] == ["B", "f", "B", "f"]


@pytest.mark.parametrize(
    ("risk", "level"),
    [
        ((0.4, 0.2, 0.4), RiskLevel.UNSAFE),
        ((0.4, 0.4, 0.2), RiskLevel.CONTROVERSIAL),
        ((0.2, 0.4, 0.4), RiskLevel.UNSAFE),
        ((1 / 3, 1 / 3, 1 / 3), RiskLevel.UNSAFE),
    ],
)
def test_between_equals_the_more_harmful_level_wins(risk: tuple[float, float, float], level: RiskLevel) -> None:
    verdict = pack_verdicts(torch.tensor([risk]), torch.full((1, 9), 1 / 9))[0]
    assert verdict.risk_level is level
    assert verdict.probabilities.risk_level is level, "the core's own rule"
    assert verdict.category is Category.VIOLENT, "the first of equals"


def test_no_rows_make_no_verdicts() -> None:
    assert len(pack_verdicts(torch.empty(0, 3), torch.empty(0, 9))) == 0


def plan_of(*chunks: tuple[int, Sequence[int], Sequence[Read]]) -> StepPlan:
    """(start, ids, reads) chunks, each in an extent of its own."""
    return StepPlan(
        (),
        tuple(
            Chunk(seq_id, 0, start, array("i", ids), bytes(reads), Extent(128 * seq_id, 128))
            for seq_id, (start, ids, reads) in enumerate(chunks)
        ),
    )


def stream_backend(path: Path, num_slots: int, dtype: torch.dtype = torch.float32) -> TorchStreamBackend:
    guard = load_stream(open_checkpoint(path), CPU, dtype)
    return TorchStreamBackend(guard, Backbone(guard.model, num_slots))


def ids_of(seed: int, num_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(400), k=num_tokens)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_each_head_reads_its_own_rows(stream_path: Path, dtype: torch.dtype) -> None:
    first, second = ids_of(1, 5), ids_of(2, 4)
    backend = stream_backend(stream_path, 256, dtype)
    readings = backend.step(plan_of((0, first, [N, Q, N, R, R]), (0, second, [R, Q, R, Q])))
    responses, queries = oracle(stream_path, [first, second])
    assert_close(readings.responses, [responses[0][3], responses[0][4], responses[1][0], responses[1][2]], dtype)
    assert_close(readings.queries, [queries[0][1], queries[1][1], queries[1][3]], dtype)


def test_heads_are_in_float32_on_a_processor(stream_path: Path) -> None:
    """There oneDNN would keep code for every number of rows that it multiplies in bfloat16."""
    guard = load_stream(open_checkpoint(stream_path), CPU, torch.bfloat16)
    TorchStreamBackend(guard, Backbone(guard.model, 256))
    dtypes = {name: parameter.dtype for name, parameter in guard.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith("model.")} <= {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if not name.startswith("model.")} == {torch.float32}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_verdicts_of_a_stepped_sequence_are_those_of_the_whole(stream_path: Path, dtype: torch.dtype) -> None:
    """Sixteen sequences, a prompt first and then token by token."""
    sequences = [ids_of(seed, 40) for seed in range(16)]
    backend = stream_backend(stream_path, 128 * 16, dtype)
    backend.step(plan_of(*((0, ids[:20], [N] * 20) for ids in sequences)))
    responses, _ = oracle(stream_path, sequences)
    for start in range(20, 40):
        readings = backend.step(plan_of(*((start, [ids[start]], [R]) for ids in sequences)))
        assert_close(readings.responses, [rows[start] for rows in responses], dtype)


def test_a_step_may_read_nothing(stream_path: Path) -> None:
    backend = stream_backend(stream_path, 128)
    readings = backend.step(plan_of((0, [1, 2, 3], [N, N, N])))
    assert len(readings.responses) == len(readings.queries) == 0


@torch.inference_mode()
def oracle(path: Path, sequences: Sequence[Sequence[int]]) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """The risk probabilities of both heads at every position, in float32, from one whole pass for each sequence."""
    guard = load_stream(open_checkpoint(path), CPU, torch.float32)
    guard.model.set_attn_implementation("sdpa")
    hidden = [guard.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0] for ids in sequences]
    responses = [guard.response_probabilities(rows)[0].tolist() for rows in hidden]
    queries = [guard.query_probabilities(rows)[0].tolist() for rows in hidden]
    return responses, queries


def assert_close(verdicts: VerdictArrays, expected: Sequence[Sequence[float]], dtype: torch.dtype) -> None:
    told = torch.tensor(verdicts.probabilities).view(-1, 3)
    torch.testing.assert_close(told, torch.tensor(expected), rtol=0, atol=TOLERANCES[dtype])


def gen_backend(path: Path, verdict_ids: tuple[int, int, int] = (10, 20, 30)) -> TorchGenBackend:
    weights = load_gen(open_checkpoint(path), CPU, torch.float32)
    return TorchGenBackend(
        Backbone(weights.backbone, 256),
        weights.lm_head,
        end_ids=frozenset({7}),
        verdict_prefix=[1, 2],
        verdict_ids=verdict_ids,
        likely_answers={},
    )


@torch.inference_mode()
def gen_logits(path: Path, ids: Sequence[int]) -> torch.Tensor:
    weights = load_gen(open_checkpoint(path), CPU, torch.float32)
    weights.backbone.set_attn_implementation("sdpa")
    hidden = weights.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    logits: torch.Tensor = hidden @ weights.lm_head.T
    return logits


@pytest.mark.parametrize("tied", [True, False])
def test_next_tokens_and_verdict_probabilities(tmp_path: Path, tied: bool) -> None:
    path = write_gen_checkpoint(tmp_path, tied=tied)
    first, second = ids_of(3, 6), ids_of(4, 3)
    readings = gen_backend(path).step(plan_of((0, first, [N, L, N, N, N, L]), (0, second, [N, N, L])))
    logits = torch.stack([gen_logits(path, first)[1], gen_logits(path, first)[5], gen_logits(path, second)[2]])
    assert list(readings.next_ids) == logits.argmax(dim=-1).tolist()
    assert readings.next_ids.typecode == "i"
    expected = torch.softmax(logits[:, [10, 20, 30]], dim=-1).flatten()
    assert list(readings.verdict_probabilities) == pytest.approx(expected.tolist(), abs=1e-4)


def test_between_equal_logits_the_lowest_id_wins(tmp_path: Path) -> None:
    """As in transformers' greedy search. Every row of the head is the same one here."""
    path = write_gen_checkpoint(tmp_path, tied=False)
    weights = load_gen(open_checkpoint(path), CPU, torch.float32)
    equal_rows = weights.lm_head[:1].expand_as(weights.lm_head)
    backend = TorchGenBackend(
        Backbone(weights.backbone, 128),
        equal_rows,
        end_ids=frozenset(),
        verdict_prefix=[],
        verdict_ids=(3, 2, 1),
        likely_answers={},
    )
    readings = backend.step(plan_of((0, [5, 6], [N, L])))
    assert list(readings.next_ids) == [0]
    assert list(readings.verdict_probabilities) == pytest.approx([1 / 3] * 3)


def test_a_step_of_a_long_prompt_reads_no_logits(gen_path: Path) -> None:
    readings = gen_backend(gen_path).step(plan_of((0, [1, 2, 3], [N, N, N])))
    assert len(readings.next_ids) == len(readings.verdict_probabilities) == 0


def test_the_backend_tells_what_the_engine_asks_for(gen_path: Path) -> None:
    backend = gen_backend(gen_path)
    assert backend.verdict_prefix == (1, 2)
    assert backend.end_ids == {7}
