from __future__ import annotations

import itertools
import statistics

import pytest

from guardwire.load_schedule import Pace, Push, Schedule, poisson_arrivals, token_ids


def first_ids(vocabulary_size: int, seed: int = 0, conversation: int = 0) -> list[int]:
    return list(itertools.islice(token_ids(vocabulary_size, seed, conversation), 2000))


def test_arrivals_are_those_of_a_poisson_process() -> None:
    arrivals_s = poisson_arrivals(rate=50, duration_s=400, seed=1)
    assert list(arrivals_s) == sorted(arrivals_s)
    assert arrivals_s[0] > 0
    assert arrivals_s[-1] < 400
    assert len(arrivals_s) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    gaps_s = [after - before for before, after in itertools.pairwise(arrivals_s)]
    assert statistics.mean(gaps_s) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps_s) == pytest.approx(1 / 50, rel=0.05)
    assert sum(gap_s > 1 / 50 for gap_s in gaps_s) / len(gaps_s) == pytest.approx(0.368, abs=0.02)  # 1/e


def test_the_seed_gives_the_load() -> None:
    assert poisson_arrivals(10, 20, seed=1) == poisson_arrivals(10, 20, seed=1)
    assert poisson_arrivals(10, 20, seed=1) != poisson_arrivals(10, 20, seed=2)
    assert first_ids(1000, seed=1, conversation=3) == first_ids(1000, seed=1, conversation=3)
    assert first_ids(1000, seed=1, conversation=3) != first_ids(1000, seed=1, conversation=4)
    assert first_ids(1000, seed=1, conversation=3) != first_ids(1000, seed=2, conversation=3)


def test_a_longer_load_begins_like_a_shorter_one() -> None:
    short = poisson_arrivals(10, 20, seed=1)
    assert poisson_arrivals(10, 40, seed=1)[: len(short)] == short


@pytest.mark.parametrize("vocabulary_size", [0, 1, 2, 14, 151_936])
def test_tokens_come_from_the_lower_half_of_the_vocabulary(vocabulary_size: int) -> None:
    ids = first_ids(vocabulary_size)
    assert min(ids) >= 0
    assert max(ids) <= max(0, vocabulary_size // 2 - 1)
    assert (len(set(ids)) > 1) == (vocabulary_size > 3)


@pytest.mark.parametrize(("num_tokens", "chunk_tokens"), [(1, 1), (7, 1), (7, 3), (6, 3), (2, 5)])
def test_every_token_is_pushed_once_when_it_is_due(num_tokens: int, chunk_tokens: int) -> None:
    pace = Pace(num_tokens, 4.0, chunk_tokens)
    pushes = list(pace.pushes())
    assert [t for push in pushes for t in range(push.first_token, push.first_token + push.num_tokens)] == list(
        range(num_tokens)
    )
    for push in pushes:
        for token in range(push.first_token, push.first_token + push.num_tokens):
            assert pace.due_s(token) == push.due_s
        assert pace.num_due(push.due_s) == push.first_token + push.num_tokens
        assert pace.num_due(push.due_s - 0.01) == push.first_token
    assert pushes[-1].due_s == pace.length_s


def test_a_chunk_is_due_when_its_last_token_is_written() -> None:
    assert list(Pace(5, 10.0, 2).pushes()) == [Push(0, 2, 0.2), Push(2, 2, 0.4), Push(4, 1, 0.5)]


def test_what_is_due_until_a_moment() -> None:
    schedule = Schedule([1.0, 2.0, 8.0], Pace(4, 2.0, 1))
    assert schedule.end_s == 10.0
    assert [schedule.num_arrived(at_s) for at_s in (0.5, 1.0, 2.5, 9.0)] == [0, 1, 2, 3]
    assert [schedule.num_tokens_due(at_s) for at_s in (1.0, 1.5, 2.75, 4.0, 8.75, 10.0, 1e9)] == [0, 1, 4, 8, 9, 12, 12]
    assert Schedule([], Pace(4, 2.0, 1)).end_s == 0.0
