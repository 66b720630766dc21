"""A served stream says, token by token, what one plain forward pass over the whole conversation says.

200 random schedules of 16 sessions at a time, over gRPC, on random weights with the real vocabulary. A failure names
the seed of its schedule: `random_schedule(seed, vocabulary)` makes the same one again.
"""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import pytest_asyncio

from guardwire.v1 import moderation_pb2 as pb
from tests.model.checkpoints import write_stream_checkpoint
from tests.model.real_vocabulary import real_tokenizer_json
from tests.parity.chatml import Vocabulary
from tests.parity.checks import SessionCheck
from tests.parity.oracle import StreamOracle
from tests.parity.replay import play_schedule
from tests.parity.schedules import NUM_SESSIONS, VOCABULARY_SIZE, random_schedule
from tests.parity.served import Served, parity_config, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUM_SCHEDULES = 200
SCHEDULES_PER_TEST = 10
NUM_CROWDED_SCHEDULES = 10

MIN_SHARE = 0.005
"""Each risk level and category is at least this frequent; else the weights would not tell right from wrong."""

MAX_TIE_SHARE = 0.001
"""Probabilities spread over [0, 1] come within 1e-5 of each other about once in 20,000 tokens."""

LAYERS, KV_HEADS, HEAD_DIM = 2, 2, 16
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded(checkpoint: Path) -> AsyncIterator[Served]:
    """A server whose arena holds a quarter of the sessions, so that they push each other out all the time."""
    bytes_per_token = 2 * LAYERS * KV_HEADS * HEAD_DIM * 4
    config = parity_config(
        stream_model=checkpoint,
        max_num_batched_tokens=96,
        max_context_tokens=CROWDED_CONTEXT_TOKENS,
        kv_memory_gib=CROWDED_ARENA_TOKENS * bytes_per_token / 2**30,
    )
    async with serve(config) as served:
        yield served


@pytest.mark.parametrize("first_seed", range(0, NUM_SCHEDULES, SCHEDULES_PER_TEST))
async def test_schedules(roomy: Served, oracle: StreamOracle, vocabulary: Vocabulary, first_seed: int) -> None:
    stub = roomy.stub
    before = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    counts = await compare(roomy, oracle, vocabulary, range(first_seed, first_seed + SCHEDULES_PER_TEST))
    after = (await stub.GetServerInfo(pb.GetServerInfoRequest())).load
    assert after.num_step_sequences - before.num_step_sequences > 2 * (after.num_steps - before.num_steps), "batches"
    expect_lively(counts)


@pytest.mark.parametrize("first_seed", range(1000, 1000 + NUM_CROWDED_SCHEDULES, SCHEDULES_PER_TEST))
async def test_schedules_in_a_crowded_arena(
    crowded: Served, oracle: StreamOracle, vocabulary: Vocabulary, first_seed: int
) -> None:
    assert crowded.models.stream
    scheduler = crowded.models.stream.scheduler
    assert scheduler.arena_tokens == CROWDED_ARENA_TOKENS
    num_evictions = scheduler.num_evictions
    counts = await compare(crowded, oracle, vocabulary, range(first_seed, first_seed + SCHEDULES_PER_TEST))
    assert scheduler.num_evictions - num_evictions > SCHEDULES_PER_TEST * NUM_SESSIONS // 2
    expect_lively(counts)


async def compare(served: Served, oracle: StreamOracle, vocabulary: Vocabulary, seeds: Iterable[int]) -> Counter[str]:
    """Plays schedules one after another and compares every session; returns what was compared."""
    plans, responses = [], []
    for seed in seeds:
        schedule = random_schedule(seed, vocabulary)
        plans += schedule
        responses += await play_schedule(served.stub, schedule)
    readings = iter(oracle.judge([branch for plan in plans for branch in plan.branches]))
    counts: Counter[str] = Counter()
    for plan, told in zip(plans, responses, strict=True):
        SessionCheck(plan, list(itertools.islice(readings, len(plan.branches))), counts).check(told)
    print(dict(sorted(counts.items())))  # shown where the test fails
    return counts


def expect_lively(counts: Counter[str]) -> None:
    """Checks that the comparison was worth something."""
    for name in (*(f"risk level {level}" for level in range(1, 4)), *(f"category {number}" for number in range(9))):
        assert counts[name] > MIN_SHARE * counts["tokens"], f"{name} is too rare"
    assert counts["category 9"], "no prompt was judged a jailbreak"
    assert counts["ties"] <= MAX_TIE_SHARE * counts["tokens"]
    assert min(counts["scaffold"], counts["decisions"], counts["rollbacks"]) > 0
