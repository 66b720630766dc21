from __future__ import annotations

import random

import grpc
import pytest

from guardwire.errors import (
    DeadlineExceeded,
    ErrorDetails,
    GuardwireError,
    InvalidRequest,
    Overloaded,
    ServerFault,
    Unavailable,
)
from guardwire.load_report import MAX_BUSY, MAX_LATE_MS, ErrorCount, LoadReport, Outcomes, Percentiles, Samples
from guardwire.load_schedule import Pace, Schedule


def a_report(*arrivals_s: float, num_tokens: int = 4, tokens_per_s: float = 2.0, chunk_tokens: int = 1) -> LoadReport:
    return LoadReport(Schedule(arrivals_s, Pace(num_tokens, tokens_per_s, chunk_tokens)), duration_s=10.0)


def samples(values: list[float], max_kept: int = 1000) -> Samples:
    taken = Samples(max_kept)
    for value in values:
        taken.add(value)
    return taken


def test_percentiles_are_those_of_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    random.Random(0).shuffle(values)
    assert samples(values).percentiles() == Percentiles(100, 50.0, 90.0, 99.0, 100.0)
    assert samples([3.0, 1.0, 2.0]).percentiles() == Percentiles(3, 2.0, 3.0, 3.0, 3.0)
    assert samples([-1.0]).percentiles() == Percentiles(1, -1.0, -1.0, -1.0, -1.0)
    assert samples([]).percentiles() == Percentiles(0, None, None, None, None)


def test_beyond_the_bound_a_random_choice_is_kept() -> None:
    spread = samples([float(value) for value in range(100_000)], max_kept=2000).percentiles()
    assert (spread.num_samples, spread.max) == (100_000, 99_999.0)
    assert spread.p50 == pytest.approx(50_000, abs=6_000)
    assert spread.p90 == pytest.approx(90_000, abs=4_000)


def test_lag_counts_from_when_a_token_was_due() -> None:
    report = a_report(1.0)
    report.pushed(due_s=1.5, now_s=9.0)  # late, whoever is to blame: that changes nothing
    report.judged(arrival_s=1.0, token=0, now_s=9.25)
    report.judged(arrival_s=1.0, token=3, now_s=9.25)
    lag = report.result(9.25).verdict_lag_ms
    assert (lag.num_samples, lag.p50, lag.max) == (2, 6250.0, 7750.0)


def test_lag_of_a_chunk_counts_from_when_its_last_token_was_written() -> None:
    report = a_report(0.0, chunk_tokens=3)
    for token in range(4):
        report.judged(arrival_s=0.0, token=token, now_s=2.5)
    lag = report.result(2.5).verdict_lag_ms
    assert (lag.p50, lag.max) == (1000.0, 1000.0)


def test_a_prompts_verdict_counts_from_the_arrival() -> None:
    report = a_report(1.0)
    report.prompt_judged(arrival_s=1.0, now_s=1.5)
    assert report.result(3.0).prompt_verdict_ms.p99 == 500.0


def test_a_load_that_the_server_bears_achieves_what_was_offered() -> None:
    report = a_report(1.0, 5.0, 9.0)
    for arrival_s in (1.0, 5.0, 9.0):
        for token in range(4):
            report.judged(arrival_s, token, arrival_s + 0.5 * (token + 1))
        report.ended_well()
    result = report.result(11.0)
    assert result.offered == result.achieved
    assert (result.offered.conversations, result.offered.conversations_per_s) == (3, 0.3)
    assert (result.offered.tokens, result.offered.tokens_per_s) == (12, 12 / 11)
    assert result.all_ended_well
    assert result.unjudged_tokens == 0


def test_what_ends_later_lowers_what_is_achieved() -> None:
    report = a_report(1.0, 9.0)
    for _ in range(2):
        report.ended_well()
    for token in range(4):
        report.judged(1.0, token, 21.0)
    result = report.result(22.0)
    assert (result.offered.conversations_per_s, result.achieved.conversations_per_s) == (0.2, 0.1)
    assert (result.achieved.tokens_per_s, result.unjudged_tokens) == (4 / 22, 4)


def refusal(error: type[GuardwireError], reason: str = "") -> GuardwireError:
    return error("no", grpc.StatusCode.UNAVAILABLE, ErrorDetails(reason))


def test_every_conversation_is_counted_once() -> None:
    report = a_report(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    report.ended_well()
    report.not_started()
    for _ in range(2):
        report.ended_badly(refusal(Overloaded, "TOO_MANY_SESSIONS"), was_open=False)
    report.ended_badly(refusal(Unavailable, "DRAINING"), was_open=False)
    report.ended_badly(refusal(Unavailable), was_open=False)  # nobody said no: nobody was there
    report.ended_badly(refusal(DeadlineExceeded), was_open=False)
    report.ended_badly(refusal(InvalidRequest, "CONTEXT_OVERFLOW"), was_open=True)
    report.ended_badly(refusal(ServerFault, "STEP_FAILED"), was_open=True)
    result = report.result(11.0)
    assert result.conversations == Outcomes(ended_well=1, refused=3, failed=4, not_started=1, unfinished=0)
    assert result.errors[0] == ErrorCount("refused", "Overloaded", "TOO_MANY_SESSIONS", 2)
    assert {(error.outcome, error.error, error.reason, error.count) for error in result.errors[1:]} == {
        ("refused", "Unavailable", "DRAINING", 1),
        ("failed", "Unavailable", "UNAVAILABLE", 1),
        ("failed", "DeadlineExceeded", "UNAVAILABLE", 1),
        ("failed", "InvalidRequest", "CONTEXT_OVERFLOW", 1),
        ("failed", "ServerFault", "STEP_FAILED", 1),
    }
    assert not result.all_ended_well


def test_an_interrupted_load_owes_nothing_for_what_was_not_due() -> None:
    report = a_report(1.0, 2.0, 8.0)
    for token in range(4):
        report.judged(1.0, token, 3.1)
    report.ended_well()
    result = report.result(3.25, interrupted=True)
    assert (result.offered.conversations, result.offered.tokens) == (2, 6)
    assert result.conversations == Outcomes(ended_well=1, refused=0, failed=0, not_started=0, unfinished=1)
    assert result.unjudged_tokens == 2
    assert (result.offered.conversations_per_s, result.offered.tokens_per_s) == (2 / 3.25, 6 / 3.25)


def test_an_interruption_at_once_divides_by_nothing() -> None:
    result = a_report(1.0).result(0.0, interrupted=True)
    assert (result.offered.tokens_per_s, result.achieved.conversations_per_s) == (0.0, 0.0)


def test_a_client_that_keeps_its_schedule() -> None:
    report = a_report(1.0)
    report.woke(1.5, 1.5 + MAX_LATE_MS / 2000)
    report.pushed(1.5, 1.5 + MAX_LATE_MS / 2000)
    report.busy(MAX_BUSY)
    report.busy(0.1)
    client = report.result(3.0).client
    assert not client.fell_behind
    assert client.busiest_second == MAX_BUSY
    assert client.push_late_p99_ms == pytest.approx(MAX_LATE_MS / 2)


@pytest.mark.parametrize("how", ["woke", "pushed", "busy"])
def test_a_client_that_fell_behind(how: str) -> None:
    report = a_report(1.0)
    if how == "busy":
        report.busy(MAX_BUSY + 0.01)
    else:
        getattr(report, how)(1.5, 1.5 + MAX_LATE_MS / 500)
    assert report.result(3.0).client.fell_behind
