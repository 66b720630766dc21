"""The sizes of recorded steps, and how a plan is laid out and padded for them."""

import random
from array import array
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, StepPlan
from guardwire_server.model.cuda_batch import (
    MAX_RECORDED_TOKENS,
    MIN_MIXED_TOKENS,
    QUERY_BLOCK,
    Bucket,
    HostWords,
    StepInputs,
    StepSize,
    bucket_of,
    choose_bucket,
    default_buckets,
    fill,
    split,
)

TRASH = 99_000
POISON = -77
MAX_KEYS = 8192
BUCKETS = default_buckets(StepSize(4096, 256, MAX_KEYS))


def plan_of(*sizes: tuple[int, int]) -> StepPlan:
    """Chunks of (cached, new) tokens."""
    randomness = random.Random(0)
    chunks = []
    for number, (past, num_new) in enumerate(sizes):
        ids = array("i", (randomness.randrange(1, 1000) for _ in range(num_new)))
        chunks.append(Chunk(number, 0, past, ids, bytes(num_new), Extent(2048 * number + 64, 2048)))
    return StepPlan((), tuple(chunks))


def filled(plan: StepPlan, bucket: Bucket) -> StepInputs[HostWords]:
    words = np.full(bucket.num_words + 5, POISON, np.int32)
    inputs = split(words, bucket)
    fill(plan, inputs, TRASH)
    assert (words[: bucket.num_words] != POISON).all(), "every word is written"
    assert (words[bucket.num_words :] == POISON).all(), "and none beyond"
    return inputs


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    num_seqs = draw(st.integers(1, 20))
    lengths = draw(
        st.lists(st.integers(1, draw(st.sampled_from((1, 3, 60, 400)))), min_size=num_seqs, max_size=num_seqs)
    )
    return plan_of(*((draw(st.integers(0, 700)), num_new) for num_new in lengths))


def test_the_size_of_a_plan() -> None:
    assert bucket_of(plan_of((5, 1), (0, 3), (7, 2))) == Bucket(6, 3, 3, 9)
    assert bucket_of(plan_of((5, 1), (0, 1))) == Bucket(2, 1, 2, 6)
    assert bucket_of(plan_of((10, QUERY_BLOCK + 1), (0, 2))) == Bucket(131, QUERY_BLOCK, 3, 139)
    assert bucket_of(StepPlan((), ())) == Bucket(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(500, 1)], Bucket(1, 1, 1, 2048)),
        ([(5000, 1)], Bucket(1, 1, 1, 8192)),
        ([(2047, 1)], Bucket(1, 1, 1, 2048)),
        ([(2048, 1)], Bucket(1, 1, 1, 8192)),
        ([(500, 1)] * 17, Bucket(32, 1, 32, 8192)),
        ([(500, 1)] * 256, Bucket(256, 1, 256, 8192)),
        ([(500, 2)], Bucket(32, 32, 32, 8192)),
        ([(500, 1)] * 31 + [(9, 3)], Bucket(64, 64, 64, 8192)),
        ([(0, 129)], Bucket(256, 128, 256, 8192)),
        ([(0, 1000)], Bucket(1024, 128, 264, 8192)),
        ([(0, 769)] + [(9, 1)] * 255, Bucket(1024, 128, 264, 8192)),
    ],
)
def test_the_smallest_recording_that_holds_a_plan(sizes: Sequence[tuple[int, int]], expected: Bucket) -> None:
    assert choose_bucket(BUCKETS, bucket_of(plan_of(*sizes))) == expected


def test_a_plan_that_no_recording_holds() -> None:
    assert choose_bucket(BUCKETS, bucket_of(plan_of((0, MAX_RECORDED_TOKENS + 1)))) is None
    assert choose_bucket(BUCKETS, bucket_of(plan_of((MAX_KEYS, 1)))) is None
    assert choose_bucket((), bucket_of(plan_of((0, 1)))) is None


@settings(max_examples=40, deadline=None)
@given(plans())
def test_every_plan_of_a_recorded_size_has_a_recording(plan: StepPlan) -> None:
    needed = bucket_of(plan)
    bucket = choose_bucket(BUCKETS, needed)
    if needed.num_tokens > MAX_RECORDED_TOKENS:
        assert bucket is None
        return
    assert bucket is not None
    assert bucket.holds(needed)
    assert bucket.is_single == (needed.max_query == 1)
    padding = bucket.num_tokens - needed.num_tokens
    assert padding < max(MIN_MIXED_TOKENS, needed.num_tokens), "at most half of a large one is padding"


@pytest.mark.parametrize("limits", [(1, 1, 64), (20, 5, 100), (48, 256, 512), (300, 40, 8192), (4096, 2048, 32768)])
def test_no_recording_exceeds_the_limits(limits: tuple[int, int, int]) -> None:
    largest = StepSize(*limits)
    buckets = default_buckets(largest)
    assert len(set(buckets)) == len(buckets) < 40, "each takes time at the start"
    assert list(buckets) == sorted(buckets)
    for bucket in buckets:
        assert bucket.num_tokens <= min(largest.max_tokens, MAX_RECORDED_TOKENS)
        assert bucket.max_query <= min(QUERY_BLOCK, bucket.num_tokens)
        assert bucket.num_pieces <= bucket.num_tokens
        assert bucket.max_keys <= largest.max_keys
        if bucket.is_single:
            assert bucket.num_pieces == bucket.num_tokens
    num_single = min(largest.max_tokens, largest.max_seqs, MAX_RECORDED_TOKENS)
    assert choose_bucket(buckets, Bucket(num_single, 1, num_single, largest.max_keys))


@pytest.mark.parametrize(("max_tokens", "max_seqs"), [(1024, 256), (300, 40), (1024, 1)])
def test_the_worst_mix_of_chunks_has_a_recording(max_tokens: int, max_seqs: int) -> None:
    """As many sequences as there may be, of lengths that make the most pieces."""
    buckets = default_buckets(StepSize(max_tokens, max_seqs, MAX_KEYS))
    lengths = [1] * max_seqs
    while sum(lengths) + QUERY_BLOCK <= max_tokens:
        lengths[0] += QUERY_BLOCK
    needed = bucket_of(plan_of(*((0, length) for length in lengths)))
    assert choose_bucket(buckets, needed)


@settings(max_examples=40, deadline=None)
@given(plans(), st.sampled_from(("exact", "recorded")))
def test_what_a_step_reads(plan: StepPlan, kind: str) -> None:
    """Against the definition, token by token."""
    needed = bucket_of(plan)
    inputs = filled(plan, (choose_bucket(BUCKETS, needed) if kind == "recorded" else None) or needed)
    row = piece = 0
    for chunk in plan.chunks:
        for offset, token_id in enumerate(chunk.ids):
            if offset % QUERY_BLOCK == 0:
                assert inputs.query_starts[piece] == row
                assert inputs.key_starts[piece] == chunk.extent.start
                assert inputs.num_keys[piece] == chunk.start + min(offset + QUERY_BLOCK, len(chunk.ids))
                piece += 1
            assert inputs.ids[row] == token_id
            assert inputs.positions[row] == chunk.start + offset
            assert inputs.slots[row] == chunk.extent.start + chunk.start + offset
            row += 1
    assert inputs.query_starts[piece] == row == needed.num_tokens
    assert piece == needed.num_pieces


@settings(max_examples=40, deadline=None)
@given(plans())
def test_padding_touches_the_trash_slot_alone(plan: StepPlan) -> None:
    needed = bucket_of(plan)
    bucket = choose_bucket(BUCKETS, needed) or needed
    inputs = filled(plan, bucket)
    num_tokens, num_pieces = needed.num_tokens, needed.num_pieces
    assert (inputs.slots[:num_tokens] < TRASH).all()
    assert (inputs.slots[num_tokens:] == TRASH).all()
    assert (inputs.ids[num_tokens:] == 0).all()
    assert (inputs.positions[num_tokens:] == 0).all()
    assert (inputs.key_starts[num_pieces:] == TRASH).all()
    lengths = np.diff(inputs.query_starts)
    if bucket.is_single:
        assert (lengths == 1).all(), "flash attention takes rows for pieces"
        assert (inputs.num_keys[num_pieces:] == 1).all()
    else:
        assert (lengths[num_pieces:] == 0).all()
        assert (inputs.num_keys[num_pieces:] == 0).all()


def test_a_step_that_is_all_padding() -> None:
    for bucket in BUCKETS:
        inputs = filled(StepPlan((), ()), bucket)
        assert (inputs.slots == TRASH).all()
        assert inputs.query_starts[-1] == (bucket.num_tokens if bucket.is_single else 0)


def test_the_parts_are_the_same_on_the_host_and_on_the_device() -> None:
    bucket = BUCKETS[-1]
    words = np.arange(bucket.num_words, dtype=np.int32)
    host, device = split(words, bucket), split(torch.from_numpy(words), bucket)
    parts = ("ids", "positions", "slots", "query_starts", "key_starts", "num_keys")
    assert sum(len(getattr(host, part)) for part in parts) == bucket.num_words
    for part in parts:
        assert getattr(device, part).tolist() == getattr(host, part).tolist()
        assert getattr(device, part).is_contiguous()
