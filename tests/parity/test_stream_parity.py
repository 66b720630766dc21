"""A served stream says, token by token, what one plain forward pass over the whole conversation says.

200 random schedules of 16 sessions at a time, over gRPC, on random weights with the real vocabulary; and for each
ComputePath some in an arena that holds a quarter of the sessions: with a call for each of them, with one call for all,
and with answers that slide out of their context. A failure names the seed of its schedule: `random_schedule` makes the
same one of it again.
"""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from guardwire.v1 import moderation_pb2 as pb
from tests.model.checkpoints import write_stream_checkpoint
from tests.model.real_vocabulary import real_tokenizer_json
from tests.parity.chatml import Vocabulary
from tests.parity.checks import SessionCheck
from tests.parity.compute_paths import COMPUTE_PATHS, ComputePath
from tests.parity.oracle import BranchReadings, StreamOracle
from tests.parity.precision import FLOAT32, Precision
from tests.parity.replay import play_schedule, play_schedule_on_one_call, play_schedule_packed
from tests.parity.schedules import NUM_SESSIONS, VOCABULARY_SIZE, SessionPlan, random_schedule
from tests.parity.served import Served, parity_config, serve

Play = Callable[[Any, list[SessionPlan]], Awaitable[list[list[pb.ModerateStreamResponse]]]]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_SCHEDULES = 200
SCHEDULES_PER_TEST = 10
CROWDED_SEEDS, ONE_CALL_SEEDS, SLIDING_SEEDS = range(1000, 1003), range(2000, 2002), range(3000, 3002)
"""Played on every path."""

MIN_SHARE = 0.005
"""Each risk level and category is at least this frequent; else the weights would not tell right from wrong."""

WEIGHTS_SEED = 3
"""Of weights that find all risk levels and categories often enough."""

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 32
CROWDED_CONTEXT_TOKENS = 512
CROWDED_ARENA_TOKENS = 1024
"""Room for 4 of 16 sessions: most have more than 128 tokens, and so an extent of 256."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream_checkpoint(
        tmp_path_factory.mktemp("parity") / "stream",
        tokenizer_json=real_tokenizer_json(),
        vocabulary_size=VOCABULARY_SIZE,
        hidden=32,
        layers=LAYERS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        guard_inner=16,
        seed=WEIGHTS_SEED,
    )


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> Vocabulary:
    return Vocabulary(checkpoint)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> StreamOracle:
    return StreamOracle(checkpoint)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def roomy(checkpoint: Path) -> AsyncIterator[Served]:
    """A server that never runs out of room; its small steps cut prompts and pushes into chunks."""
    async with serve(parity_config(stream_model=checkpoint, max_num_batched_tokens=96)) as served:
        yield served


@pytest.fixture(scope="module", params=COMPUTE_PATHS, ids=str)
def path(request: pytest.FixtureRequest) -> ComputePath:
    chosen: ComputePath = request.param
    return chosen


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded(checkpoint: Path, path: ComputePath) -> AsyncIterator[Served]:
    """A server whose arena holds a quarter of the sessions, so that they push each other out all the time."""
    bytes_per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * path.kv_dtype.itemsize
    config = parity_config(
        stream_model=checkpoint,
        max_num_batched_tokens=96,
        max_context_tokens=CROWDED_CONTEXT_TOKENS,
        kv_memory_gib=CROWDED_ARENA_TOKENS * bytes_per_token / 2**30,
        **path.settings(),
    )
    async with serve(config) as served:
        assert served.models.stream
        assert path.is_taken_by(served.models.stream.backend)
        yield served


@pytest.mark.parametrize("first_seed", range(0, NUM_SCHEDULES, SCHEDULES_PER_TEST))
async def test_schedules(roomy: Served, oracle: StreamOracle, vocabulary: Vocabulary, first_seed: int) -> None:
    stub = roomy.stub
    before = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    counts = await compare(roomy, oracle, vocabulary, range(first_seed, first_seed + SCHEDULES_PER_TEST))
    after = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    assert after.num_step_sequences - before.num_step_sequences > 2 * (after.num_steps - before.num_steps), "batches"
    expect_lively(counts)


async def test_schedules_in_a_crowded_arena(
    crowded: Served, path: ComputePath, oracle: StreamOracle, vocabulary: Vocabulary
) -> None:
    with expect_evictions(crowded, len(CROWDED_SEEDS)):
        counts = await compare(crowded, oracle, vocabulary, CROWDED_SEEDS, precision=path.precision)
    expect_lively(counts, path.precision)


@pytest.mark.parametrize("play", [play_schedule_on_one_call, play_schedule_packed], ids=["one_call", "packed"])
async def test_schedules_on_one_call(
    crowded: Served, path: ComputePath, oracle: StreamOracle, vocabulary: Vocabulary, play: Play
) -> None:
    with expect_evictions(crowded, len(ONE_CALL_SEEDS)):
        counts = await compare(crowded, oracle, vocabulary, ONE_CALL_SEEDS, precision=path.precision, play=play)
    expect_lively(counts, path.precision)


async def test_schedules_that_slide(
    crowded: Served, path: ComputePath, oracle: StreamOracle, vocabulary: Vocabulary
) -> None:
    with expect_evictions(crowded, len(SLIDING_SEEDS)):
        counts = await compare(
            crowded, oracle, vocabulary, SLIDING_SEEDS, precision=path.precision, slides_at=CROWDED_CONTEXT_TOKENS
        )
    assert counts["slides"] > len(SLIDING_SEEDS) * NUM_SESSIONS // 2
    expect_lively(counts, path.precision)


@contextmanager
def expect_evictions(crowded: Served, num_schedules: int) -> Iterator[None]:
    """Checks that the sessions of so many schedules have pushed each other out."""
    assert crowded.models.stream
    scheduler = crowded.models.stream.scheduler
    assert scheduler.arena_tokens == CROWDED_ARENA_TOKENS
    num_evictions = scheduler.num_evictions
    yield
    assert scheduler.num_evictions - num_evictions > num_schedules * NUM_SESSIONS // 4  # how many is a matter of timing


async def compare(
    served: Served,
    oracle: StreamOracle,
    vocabulary: Vocabulary,
    seeds: Iterable[int],
    *,
    precision: Precision = FLOAT32,
    play: Play = play_schedule,
    slides_at: int | None = None,
) -> Counter[str]:
    """Plays schedules one after another and compares every session; returns what was compared."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        plans, readings = judged_schedule(oracle, vocabulary, seed, slides_at)
        responses = await play(served.stub, plans)
        for plan, judged, told in zip(plans, readings, responses, strict=True):
            counts["slides"] += len(plan.branches[-1].contexts) - 1
            SessionCheck(plan, judged, counts, precision).check(told)
    print(dict(sorted(counts.items())))  # shown where the test fails
    return counts


@lru_cache(maxsize=16)
def judged_schedule(
    oracle: StreamOracle, vocabulary: Vocabulary, seed: int, slides_at: int | None
) -> tuple[list[SessionPlan], list[list[BranchReadings]]]:
    """A schedule and what the oracle says of each session's branches; the paths share them."""
    plans = random_schedule(seed, vocabulary, slides_at)
    readings = iter(oracle.judge([branch for plan in plans for branch in plan.branches]))
    return plans, [list(itertools.islice(readings, len(plan.branches))) for plan in plans]


def expect_lively(counts: Counter[str], precision: Precision = FLOAT32) -> None:
    """Checks that the comparison was worth something."""
    for name in (*(f"risk level {level}" for level in range(1, 4)), *(f"category {number}" for number in range(9))):
        assert counts[name] > MIN_SHARE * counts["tokens"], f"{name} is too rare"
    assert counts["category 9"], "no prompt was judged a jailbreak"
    assert counts["ties"] <= precision.max_tie_share * counts["tokens"]
    assert min(counts["scaffold"], counts["decisions"], counts["rollbacks"]) > 0
