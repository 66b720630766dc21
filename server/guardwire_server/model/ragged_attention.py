"""Attention of a packed, ragged batch over an arena of keys and values.

Shapes: T new tokens of all sequences, n new tokens of one sequence, L its cached and new tokens together, N query
heads, K key-value heads, G = N / K query heads per key-value head, D head dimension, S slots of the arena.

Theory of operation. transformers' Qwen3Model computes everything but attention token by token, so it takes the new
tokens of all sequences packed into one row of length T. Its attention is looked up by name (`AttentionInterface`), and
the one registered here writes the new keys and values into the arena and lets every sequence attend to its own extent.
There is no padding, and no tensor spans two sequences.

The query heads of one key-value head are laid out as rows of one matrix: a token then reads its keys once for all G
heads, which on a CPU is about four times as fast as `enable_gqa`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Qwen3Config

from guardwire_server.core.step_plan import Copy, StepPlan

ATTENTION_NAME = "guardwire_ragged"

MAX_SERIAL_SCORES = 512
"""Up to so many scores per head a sequence is attended to by one thread. Measured on 2 cores, float32, 16 sequences of
one token: at 128 keys one thread takes half the time of two, at 512 the same, at 2,048 twice."""


class KvTensors:
    """The arena's tensors: keys and values [layers, K, S, D]. Owner: one backend. Pages are touched when first used."""

    def __init__(self, config: Qwen3Config, num_slots: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, num_kv_heads(config), num_slots, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)

    def copy(self, move: Copy) -> None:
        """Moves the leading slots of an extent to another one, in every layer; the two do not overlap."""
        source, target, num_tokens = move.source.start, move.target.start, move.num_tokens
        for tensor in (self.keys, self.values):
            tensor[:, :, target : target + num_tokens] = tensor[:, :, source : source + num_tokens]


def kv_bytes_per_token(config: Qwen3Config, dtype: torch.dtype) -> int:
    """Bytes that one cached token takes: keys and values of all layers."""
    return 2 * config.num_hidden_layers * num_kv_heads(config) * config.head_dim * dtype.itemsize


def num_kv_heads(config: Qwen3Config) -> int:
    """K; a config that does not say has one for each query head."""
    return config.num_key_value_heads or config.num_attention_heads


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's part of the batch: rows `begin` to `end` - 1 of T, after `past` cached tokens from slot `slot` on.

    `mask`: bool [G * n, past + n], True where a row attends; None when n is 1, as one new token attends to all, or when
    nobody reads it.
    """

    slot: int
    past: int
    begin: int
    end: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class RaggedBatch:
    """A step's tokens on the device: `ids`, `positions` and `slots` are int64 [T]."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    segments: tuple[Segment, ...]
    kv: KvTensors


def build_batch(plan: StepPlan, kv: KvTensors, num_groups: int | None) -> RaggedBatch:
    """Packs a plan; `num_groups` is G, or None for no masks. Host work is O(T), the masks of prefill chunks aside."""
    device = kv.keys.device
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments: list[Segment] = []
    for chunk in plan.chunks:
        begin, num_new = len(ids), len(chunk.ids)
        ids.extend(chunk.ids)
        positions.extend(range(chunk.start, chunk.start + num_new))
        first_slot = chunk.extent.start + chunk.start
        slots.extend(range(first_slot, first_slot + num_new))
        mask = causal_mask(chunk.start, num_new, num_groups, device) if num_new > 1 and num_groups else None
        segments.append(Segment(chunk.extent.start, chunk.start, begin, begin + num_new, mask))
    return RaggedBatch(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        segments=tuple(segments),
        kv=kv,
    )


def causal_mask(past: int, num_new: int, num_groups: int, device: torch.device) -> torch.Tensor:
    """Bool [G * n, past + n]: new token i sees the cached ones and the new ones up to itself."""
    mask = torch.ones(num_new, past + num_new, dtype=torch.bool, device=device).tril(past)
    return mask.repeat(num_groups, 1)


@contextlib.contextmanager
def _few_threads(batch: RaggedBatch) -> Iterator[None]:
    """Keeps small attention on one CPU thread: waking a second one for each sequence costs more than the work."""
    num_threads = torch.get_num_threads()
    is_small = all(
        (segment.past + segment.end - segment.begin) * (segment.end - segment.begin) <= MAX_SERIAL_SCORES
        for segment in batch.segments
    )
    if num_threads == 1 or not is_small or batch.ids.device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 part of the interface; the batch knows its masks
    scaling: float,
    batch: RaggedBatch,
    **kwargs: Any,  # noqa: ANN401, ARG001 whatever else the interface passes (dropout, sliding_window)
) -> tuple[torch.Tensor, None]:
    """One layer's attention; registered with transformers as ATTENTION_NAME.

    Args:
        module: The attention layer; tells which layer it is.
        query: [1, N, T, D], rotated.
        key: [1, K, T, D], rotated.
        value: [1, K, T, D].
        attention_mask: Unused.
        scaling: What scores are multiplied by.
        batch: The step's batch, passed through the model's keyword arguments.
        kwargs: Unused.

    Returns:
        [1, T, N, D], and None for the weights that nobody asks for.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    keys, values = batch.kv.keys[layer], batch.kv.values[layer]
    keys.index_copy_(1, batch.slots, key[0].to(keys.dtype))
    values.index_copy_(1, batch.slots, value[0].to(values.dtype))
    num_tokens, width = key.shape[2], query.shape[1] * query.shape[3]
    output = torch.empty(num_tokens, width, dtype=query.dtype, device=query.device)
    with _few_threads(batch):
        for segment in batch.segments:
            rows = slice(segment.begin, segment.end)
            output[rows] = attend_segment(query[0, :, rows], keys, values, segment, scaling)
    return output.view(1, num_tokens, query.shape[1], -1), None


def attend_segment(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segment: Segment, scale: float
) -> torch.Tensor:
    """Attention of one segment's new tokens to its own extent.

    Args:
        query: [N, n, D], rotated.
        keys: One layer of the arena [K, S, D], the new tokens' included; converted if the arena keeps another dtype.
        values: Likewise.
        segment: Whose tokens they are.
        scale: What scores are multiplied by.

    Returns:
        [n, N D].
    """
    (kv_heads, _, head_dim), num_new = keys.shape, query.shape[1]
    stop = segment.slot + segment.past + num_new
    rows = scaled_dot_product_attention(
        query.reshape(1, kv_heads, -1, head_dim),
        keys[:, segment.slot : stop].unsqueeze(0).to(query.dtype),
        values[:, segment.slot : stop].unsqueeze(0).to(query.dtype),
        attn_mask=segment.mask,
        scale=scale,
    )
    return rows.view(-1, num_new, head_dim).transpose(0, 1).reshape(num_new, -1)


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
