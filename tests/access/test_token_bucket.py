"""The bucket against what it promises, over any sequence of takes, changes and times."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardwire_server.access.token_bucket import SLACK_TOKENS, TokenBucket

RATES = st.floats(0.01, 1e6)
BURSTS = st.integers(1, 100_000)
WAITS = st.floats(0, 1e4)
AMOUNTS = st.integers(0, 200_000)


@settings(deadline=None)
@given(RATES, BURSTS, st.lists(st.tuples(WAITS, AMOUNTS, st.booleans()), max_size=60))
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, takes: list[tuple[float, int, bool]]) -> None:
    bucket, now_s = TokenBucket(rate, burst, 100.0), 100.0
    taken: list[tuple[float, int]] = []
    for wait_s, amount, all_or_none in takes:
        now_s += wait_s
        if all_or_none:
            taken.append((now_s, amount if bucket.take(amount, now_s) else 0))
        else:
            taken.append((now_s, bucket.take_some(amount, now_s)))
    for first, (start_s, _) in enumerate(taken):  # within every window that begins and ends with a take
        total = 0
        for end_s, amount in taken[first:]:
            total += amount
            assert total <= (burst + rate * (end_s - start_s)) * (1 + 1e-9) + SLACK_TOKENS


@settings(deadline=None)
@given(RATES, BURSTS, st.lists(st.tuples(WAITS, AMOUNTS), max_size=30), AMOUNTS)
def test_who_waits_as_told_is_let_in_and_not_before(
    rate: float, burst: int, takes: list[tuple[float, int]], amount: int
) -> None:
    bucket, now_s = TokenBucket(rate, burst, 0.0), 0.0
    for pause_s, earlier in takes:
        now_s += pause_s
        bucket.take_some(earlier, now_s)
    amount = min(amount, burst)
    wait_s = bucket.wait_s(amount, now_s)
    if wait_s > 1e-3 / rate:  # not for the slack alone
        assert not bucket.take(amount, now_s)
        assert not bucket.take(amount, now_s + wait_s * 0.99 - 2e-6 / rate)
    assert bucket.take(amount, (now_s + wait_s) * (1 + 1e-12))


@settings(deadline=None)
@given(RATES, BURSTS, AMOUNTS, WAITS)
def test_some_are_as_many_as_there_are(rate: float, burst: int, amount: int, wait_s: float) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    assert bucket.take_some(amount, 0.0) == min(amount, burst)
    left = max(0, burst - amount)
    assert bucket.take_some(10**9, wait_s) == pytest.approx(min(burst, left + rate * wait_s), abs=1.001)


def test_more_than_the_burst_is_never_there() -> None:
    bucket = TokenBucket(10.0, 50, 0.0)
    assert not bucket.take(51, 1e9)
    assert bucket.wait_s(51, 1e9) == 0.0
    assert bucket.take(50, 1e9)
    assert bucket.wait_s(51, 1e9) == 5.0


def test_a_clock_that_stands_or_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(10.0, 50, 100.0)
    assert bucket.take(10, 50.0)
    assert bucket.take(40, 100.0)
    assert not bucket.take(1, 100.0)
    assert not bucket.take(1, 50.0)
    assert bucket.take_some(5, 100.2) == 2


def test_another_rate_counts_from_its_change_on() -> None:
    bucket = TokenBucket(10.0, 100, 0.0)
    assert bucket.take(100, 0.0)
    bucket.change(100.0, 1000, 1.0)  # ten were gained by the old rate
    assert bucket.take_some(1000, 1.0) == 10
    assert bucket.take_some(1000, 2.0) == 100
    bucket.change(1.0, 5, 1000.0)  # what finds no room is gone
    assert bucket.take_some(1000, 1000.0) == 5
