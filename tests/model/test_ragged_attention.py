"""The attention of a packed batch, against attention written out for every sequence by itself."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Copy, StepPlan
from guardwire_server.model.ragged_attention import (
    KvTensors,
    build_batch,
    kv_bytes_per_token,
    num_kv_heads,
    ragged_attention,
)

LAYERS, HEADS, KV_HEADS, HEAD_DIM, NUM_SLOTS = 3, 6, 2, 8, 512
SCALING = HEAD_DIM**-0.5
CPU = torch.device("cpu")


def config(**changes: object) -> Qwen3Config:
    values: dict[str, Any] = {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
    }
    return Qwen3Config(**(values | changes))


def filled_arena(dtype: torch.dtype = torch.float32) -> KvTensors:
    kv = KvTensors(config(), NUM_SLOTS, CPU, dtype)
    generator = torch.Generator().manual_seed(0)
    kv.keys.copy_(torch.randn(kv.keys.shape, generator=generator))
    kv.values.copy_(torch.randn(kv.values.shape, generator=generator))
    return kv


def chunk(seq_id: int, start: int, ids: list[int], extent: Extent) -> Chunk:
    return Chunk(seq_id, 0, start, array("i", ids), bytes(len(ids)), extent)


PLAN = StepPlan(
    (),
    (
        chunk(0, 5, [11], Extent(64, 64)),
        chunk(1, 0, [21, 22, 23, 24], Extent(0, 64)),
        chunk(2, 70, [31, 32, 33], Extent(128, 128)),
        chunk(3, 0, [41], Extent(256, 64)),
    ),
)
NUM_TOKENS = 9


def test_a_plan_is_packed_in_the_order_of_its_chunks() -> None:
    batch = build_batch(PLAN, filled_arena(), num_groups=3)
    assert batch.ids.tolist() == [11, 21, 22, 23, 24, 31, 32, 33, 41]
    assert batch.positions.tolist() == [5, 0, 1, 2, 3, 70, 71, 72, 0]
    assert batch.slots.tolist() == [69, 0, 1, 2, 3, 198, 199, 200, 256]
    told = [(segment.slot, segment.past, segment.begin, segment.end) for segment in batch.segments]
    assert told == [(64, 5, 0, 1), (0, 0, 1, 5), (128, 70, 5, 8), (256, 0, 8, 9)]


def test_a_token_sees_what_is_cached_and_the_new_ones_up_to_itself() -> None:
    one, first, later, _ = build_batch(PLAN, filled_arena(), num_groups=2).segments
    assert one.mask is None
    assert first.mask is not None
    assert later.mask is not None
    lower = [[True, False, False, False], [True, True, False, False], [True, True, True, False], [True] * 4]
    assert first.mask.tolist() == lower * 2, "once for each query head of a group"
    assert later.mask.shape == (2 * 3, 73)
    assert later.mask[:3, :71].all()
    assert later.mask[:3, 71:].tolist() == [[False, False], [True, False], [True, True]]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_sequence_attends_to_itself_alone(layer: int) -> None:
    kv, query, key, value = filled_arena(), *new_tokens()
    expected = attention_by_hand(kv, query, key, value, layer)
    batch = build_batch(PLAN, kv, HEADS // KV_HEADS)
    output, weights = ragged_attention(attention_layer(layer), query, key, value, None, SCALING, batch)
    assert weights is None
    assert output.shape == (1, NUM_TOKENS, HEADS, HEAD_DIM)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_keys_and_values_are_written_to_their_slots_and_nowhere_else() -> None:
    kv, before = filled_arena(), filled_arena()
    query, key, value = new_tokens()
    batch = build_batch(PLAN, kv, HEADS // KV_HEADS)
    ragged_attention(attention_layer(1), query, key, value, None, SCALING, batch)
    before.keys[1][:, batch.slots] = key[0]
    before.values[1][:, batch.slots] = value[0]
    assert torch.equal(kv.keys, before.keys)
    assert torch.equal(kv.values, before.values)


def test_a_copy_moves_the_leading_slots_in_every_layer() -> None:
    kv, before = filled_arena(), filled_arena()
    kv.copy(Copy(source=Extent(64, 64), target=Extent(256, 128), num_tokens=40))
    for moved, old in ((kv.keys, before.keys), (kv.values, before.values)):
        assert torch.equal(moved[:, :, 256:296], old[:, :, 64:104])
        assert torch.equal(moved[:, :, :256], old[:, :, :256])
        assert torch.equal(moved[:, :, 296:], old[:, :, 296:])


@pytest.mark.parametrize(("layers", "kib"), [(28, 112), (36, 144)])
def test_the_published_models_cache_as_much_as_is_known_of_them(layers: int, kib: int) -> None:
    published = config(num_hidden_layers=layers, num_key_value_heads=8, head_dim=128)
    assert kv_bytes_per_token(published, torch.bfloat16) == kib * 1024
    kv = KvTensors(config(), NUM_SLOTS, CPU, torch.bfloat16)
    stored = kv.keys.nbytes + kv.values.nbytes
    assert kv_bytes_per_token(config(), torch.bfloat16) == stored / NUM_SLOTS


def test_without_its_own_number_every_query_head_has_a_key_value_head() -> None:
    assert num_kv_heads(config()) == KV_HEADS
    assert num_kv_heads(config(num_key_value_heads=None)) == HEADS


def attention_layer(index: int) -> torch.nn.Module:
    module: Any = SimpleNamespace(layer_idx=index)
    return module  # type: ignore[no-any-return]


def new_tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, HEADS, NUM_TOKENS, HEAD_DIM, generator=generator)
    key = torch.randn(1, KV_HEADS, NUM_TOKENS, HEAD_DIM, generator=generator)
    value = torch.randn(1, KV_HEADS, NUM_TOKENS, HEAD_DIM, generator=generator)
    return query, key, value


def attention_by_hand(
    kv: KvTensors, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int
) -> torch.Tensor:
    """One token and one head at a time: [1, T, N, D]."""
    output = torch.empty(1, NUM_TOKENS, HEADS, HEAD_DIM)
    row = 0
    for part in PLAN.chunks:
        first_row, cached = row, slice(part.extent.start, part.extent.start + part.start)
        for _ in part.ids:
            for head in range(HEADS):
                kv_head = head * KV_HEADS // HEADS
                keys = torch.cat((kv.keys[layer, kv_head, cached], key[0, kv_head, first_row : row + 1]))
                values = torch.cat((kv.values[layer, kv_head, cached], value[0, kv_head, first_row : row + 1]))
                scores = torch.softmax(keys @ query[0, head, row] * SCALING, dim=0)
                output[0, row, head] = scores @ values
            row += 1
    return output
