"""A step's inputs on a GPU: one row of int32 words, in sizes that a recorded CUDA graph can be replayed over.

Theory of operation. A recorded step has fixed shapes and reads its inputs from fixed addresses, so a plan is padded to
the smallest bucket that holds it; one that no bucket holds has a bucket of exactly its size. All inputs lie in one row
of words, which is filled on the host, copied to the device in one transfer, and read there through views.

Chunks are cut into pieces of at most QUERY_BLOCK tokens, to which flash attention is a sequence each. It starts a block
of threads for every QUERY_BLOCK queries of the longest sequence, every sequence and every head, so where short chunks
lie beside a long one most of them would start for nothing, and a recording would need to know the longest chunk. What
is computed stays the same: all keys of a layer are written before any is read, and each piece sees those up to its end.

Padding rows write their keys and values to the trash slot, which lies behind the arena and belongs to nobody. In a
bucket of single tokens every padding row is a piece of its own that attends to the trash slot: flash attention takes
the rows of such a batch for the pieces themselves. In every other bucket the padding rows belong to no piece and the
pieces that are missing have no tokens; what attention leaves in such rows is arbitrary, and stays there, since all else
is computed row by row.

Shapes: T tokens, M pieces. Nothing in here needs a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from guardwire_server.core.step_plan import StepPlan

HostWords = NDArray[np.int32]
Words = TypeVar("Words", HostWords, torch.Tensor)

QUERY_BLOCK = 128
"""Tokens of a piece: as many queries as a block of flash attention has at most. Source: the kernel traits in
flash_fwd_launch_template.h of FlashAttention-2."""

MIN_MIXED_TOKENS = 32
MAX_RECORDED_TOKENS = 1024
"""Beyond, computing is expected to take longer than launching even for the smallest of the published models."""

MAX_SPLIT_PIECES = 16
SPLIT_KEYS = 2048
"""For a few single tokens flash attention cuts contexts in parts for the whole device, by the longest context that it
is told to expect: a recording for long ones would cut short ones coarsely, so there are two. With 8 key-value heads it
cuts up to 26 pieces' contexts on 132 multiprocessors. Source: `num_splits_heuristic` in PyTorch's flash_api.cpp."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """The largest step that is to be expected: its tokens, its sequences and the longest context."""

    max_tokens: int
    max_seqs: int
    max_keys: int


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The size of a step: T, the longest piece, M, and the longest context, its new tokens included.

    Smaller ones cost less, in the order of the fields.
    """

    num_tokens: int
    max_query: int
    num_pieces: int
    max_keys: int

    @property
    def is_single(self) -> bool:
        """Whether every piece has one token; T is M then."""
        return self.max_query == 1

    @property
    def num_words(self) -> int:
        """Length of the row of words."""
        return sum(_part_sizes(self))

    def holds(self, needed: "Bucket") -> bool:
        """Whether a step of the size `needed` can be padded to this one."""
        return (
            needed.num_tokens <= self.num_tokens
            and needed.max_query <= self.max_query
            and needed.num_pieces <= self.num_pieces
            and needed.max_keys <= self.max_keys
        )


@dataclass(frozen=True, slots=True)
class StepInputs(Generic[Words]):
    """Views of a row of words, int32, on the host or the device.

    `ids`, `positions` and `slots` [T]: each token's id, place in its sequence and place in the arena. `query_starts`
    [M + 1]: the first row of each piece, then the end. `key_starts` [M + 1]: the slot at which each piece's keys begin;
    the last one means nothing. `num_keys` [M]: how many they are, the piece's own included.
    """

    bucket: Bucket
    ids: Words
    positions: Words
    slots: Words
    query_starts: Words
    key_starts: Words
    num_keys: Words


def bucket_of(plan: StepPlan) -> Bucket:
    """The size of a plan, exactly."""
    lengths = [len(chunk.ids) for chunk in plan.chunks]
    return Bucket(
        num_tokens=sum(lengths),
        max_query=min(QUERY_BLOCK, max(lengths, default=0)),
        num_pieces=sum(-(-length // QUERY_BLOCK) for length in lengths),
        max_keys=max((chunk.start + len(chunk.ids) for chunk in plan.chunks), default=0),
    )


def default_buckets(largest: StepSize) -> tuple[Bucket, ...]:
    """The buckets to record, the cheapest first.

    Powers of two, which are few: a step is expected to take nearly the same time up to the number of tokens at which
    arithmetic and not memory bounds it, and a padding token has one key to attend to or none.
    """
    buckets = []
    for size in _powers_of_two(1, min(largest.max_tokens, largest.max_seqs, MAX_RECORDED_TOKENS)):
        contexts = {largest.max_keys}
        if size <= MAX_SPLIT_PIECES:
            contexts.add(min(SPLIT_KEYS, largest.max_keys))
        buckets += [Bucket(size, 1, size, context) for context in contexts]
    for size in _powers_of_two(MIN_MIXED_TOKENS, min(largest.max_tokens, MAX_RECORDED_TOKENS)):
        num_pieces = min(size, largest.max_seqs + size // QUERY_BLOCK)
        buckets.append(Bucket(size, min(size, QUERY_BLOCK), num_pieces, largest.max_keys))
    return tuple(sorted(set(buckets)))


def choose_bucket(buckets: Sequence[Bucket], needed: Bucket) -> Bucket | None:
    """The first bucket that holds a step of the size `needed`; None if none does."""
    return next((bucket for bucket in buckets if bucket.holds(needed)), None)


def split(words: Words, bucket: Bucket) -> StepInputs[Words]:
    """The parts of a row of at least `bucket.num_words` words."""
    parts, begin = [], 0
    for size in _part_sizes(bucket):
        parts.append(words[begin : begin + size])
        begin += size
    return StepInputs(bucket, *parts)


def fill(plan: StepPlan, inputs: StepInputs[HostWords], trash_slot: int) -> None:
    """Writes a plan into the inputs on the host, padded to their bucket; no chunks at all are padding alone.

    Args:
        plan: A plan that the bucket holds.
        inputs: Every word of them is written.
        trash_slot: Where padding rows write their keys and values.
    """
    chunks, num_chunks = plan.chunks, len(plan.chunks)
    lengths = np.fromiter((len(chunk.ids) for chunk in chunks), np.int32, num_chunks)
    starts = np.fromiter((chunk.start for chunk in chunks), np.int32, num_chunks)
    first_slots = np.fromiter((chunk.extent.start for chunk in chunks), np.int32, num_chunks)
    positions = _counted(lengths) + np.repeat(starts, lengths)
    num_tokens = len(positions)
    inputs.ids[:num_tokens] = np.frombuffer(b"".join(chunk.ids for chunk in chunks), np.int32)
    inputs.positions[:num_tokens] = positions
    inputs.slots[:num_tokens] = positions + np.repeat(first_slots, lengths)

    cuts = (lengths + QUERY_BLOCK - 1) // QUERY_BLOCK
    begins = QUERY_BLOCK * _counted(cuts)  # in its chunk, of each piece
    ends = np.minimum(begins + QUERY_BLOCK, np.repeat(lengths, cuts))
    num_pieces = len(begins)
    inputs.query_starts[0] = 0
    inputs.query_starts[1 : num_pieces + 1] = np.cumsum(ends - begins)
    inputs.key_starts[:num_pieces] = np.repeat(first_slots, cuts)
    inputs.num_keys[:num_pieces] = np.repeat(starts, cuts) + ends
    _pad(inputs, num_tokens, num_pieces, trash_slot)


def _pad(inputs: StepInputs[HostWords], num_tokens: int, num_pieces: int, trash_slot: int) -> None:
    """Writes what lies behind a plan's own tokens and pieces."""
    inputs.ids[num_tokens:] = 0
    inputs.positions[num_tokens:] = 0
    inputs.slots[num_tokens:] = trash_slot
    inputs.key_starts[num_pieces:] = trash_slot
    if inputs.bucket.is_single:
        inputs.query_starts[num_pieces:] = np.arange(num_pieces, inputs.bucket.num_pieces + 1)
        inputs.num_keys[num_pieces:] = 1
    else:
        inputs.query_starts[num_pieces + 1 :] = num_tokens
        inputs.num_keys[num_pieces:] = 0


def _part_sizes(bucket: Bucket) -> tuple[int, ...]:
    """Of StepInputs' parts, in their order."""
    num_tokens, num_pieces = bucket.num_tokens, bucket.num_pieces
    return num_tokens, num_tokens, num_tokens, num_pieces + 1, num_pieces + 1, num_pieces


def _counted(lengths: HostWords) -> HostWords:
    """0, 1, 2 … for each length, one after another."""
    ends = np.cumsum(lengths, dtype=np.int32)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int32) - np.repeat(ends - lengths, lengths)


def _powers_of_two(smallest: int, largest: int) -> list[int]:
    """From `smallest`, itself one, up to `largest`; `largest` too, whatever it is."""
    sizes = {smallest << exponent for exponent in range(largest.bit_length()) if smallest << exponent < largest}
    return sorted(sizes | {largest})
