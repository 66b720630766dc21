"""What a load measured.

Theory of operation: every figure is counted from the moment at which something was due, not from when it was done. A
server that stalls keeps nothing from being due, so what it holds up counts with the whole time that it waited, and what
never came is told apart: `unjudged_tokens` and `not_started` stand beside the figures, which cannot know of them.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from guardwire.errors import GuardwireError, InvalidRequest, Overloaded, PermissionDenied, Unauthenticated, Unavailable
from guardwire.load_schedule import Schedule

MAX_SAMPLES = 1_000_000
"""How many samples of one kind are kept, 8 MB; of more than that a random choice is."""

MAX_LATE_MS = 10.0
"""A client that is later at the 99th percentile has fallen behind; one with little to do is late by 1 to 3 ms."""
MAX_BUSY = 0.9
"""The share of a second in which the client's one thread may compute before what it measures waits for it."""

_REFUSALS = (InvalidRequest, Overloaded, PermissionDenied, Unauthenticated)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How samples spread, by the nearest rank; None where there is no sample."""

    num_samples: int
    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


class Samples:
    """Measurements of one kind. All are kept up to a bound; beyond it every one has the same chance to be kept.

    Owner: the report.
    """

    def __init__(self, max_kept: int = MAX_SAMPLES) -> None:
        self._max_kept = max_kept
        self._kept = array("d")
        self._num_samples = 0
        self._max = -math.inf
        self._rng = random.Random(0)

    def add(self, sample: float) -> None:
        """Takes a measurement."""
        self._num_samples += 1
        self._max = max(self._max, sample)
        if len(self._kept) < self._max_kept:
            self._kept.append(sample)
        elif (place := self._rng.randrange(self._num_samples)) < self._max_kept:
            self._kept[place] = sample

    def percentiles(self) -> Percentiles:
        """How they spread; the greatest and the number are those of all, kept or not."""
        if not self._kept:
            return Percentiles(0, None, None, None, None)
        ordered = sorted(self._kept)
        p50, p90, p99 = (ordered[math.ceil(len(ordered) * percent / 100) - 1] for percent in (50, 90, 99))
        return Percentiles(self._num_samples, p50, p90, p99, self._max)


@dataclass(frozen=True, slots=True)
class Throughput:
    """How much in how long."""

    conversations: int
    conversations_per_s: float
    tokens: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the conversations that arrived ended; the fields add up to them."""

    ended_well: int
    refused: int
    """The server said no when the stream was opened."""
    failed: int
    not_started: int
    """As many streams as allowed were open when it arrived."""
    unfinished: int
    """Open when the load was interrupted."""


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many conversations ended with one error."""

    outcome: str
    """`refused` or `failed`."""
    error: str
    """The error's class."""
    reason: str
    """The server's; the name of the gRPC status where it gave none."""
    count: int


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """Whether this client kept its own schedule."""

    fell_behind: bool
    """True when the figures speak of the client, or of the network, and not of the server."""
    timer_late_p99_ms: float | None
    """How late it woke up for what was due."""
    push_late_p99_ms: float | None
    """How late tokens were pushed, without what they waited for the server to open their stream."""
    busiest_second: float
    """The share of it in which the client's thread computed."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """All that a load measured."""

    interrupted: bool
    elapsed_s: float
    offered: Throughput
    """What was due: conversations by the time in which they arrive, tokens by the time in which they are due."""
    achieved: Throughput
    """What ended well and what was judged, by the same times and what it took longer."""
    conversations: Outcomes
    errors: Sequence[ErrorCount]
    unjudged_tokens: int
    """Tokens that were due and got no verdict: pushed in vain, or never, since their stream was refused or failed."""
    verdict_lag_ms: Percentiles
    """From when a token was due to be pushed until its verdict was read."""
    prompt_verdict_ms: Percentiles
    """From a conversation's arrival until the verdict on its prompt was read."""
    client: ClientHealth

    @property
    def all_ended_well(self) -> bool:
        """True when every conversation that arrived did."""
        return self.conversations.ended_well == self.offered.conversations


class LoadReport:
    """Gathers what a load measures.

    Owner: the load's event loop. Times are seconds after its beginning.
    """

    def __init__(self, schedule: Schedule, duration_s: float) -> None:
        """Begins.

        Args:
            schedule: What is due.
            duration_s: How long conversations arrive.
        """
        self.num_ended_well = 0
        self.num_judged = 0
        self.num_errors: Counter[tuple[str, str, str]] = Counter()
        self.verdict_lag_ms = Samples()
        self._schedule = schedule
        self._duration_s = duration_s
        self._num_not_started = 0
        self._prompt_verdict_ms = Samples()
        self._timer_late_ms = Samples()
        self._push_late_ms = Samples()
        self._busiest_second = 0.0

    def not_started(self) -> None:
        """A conversation arrived while as many streams as allowed were open."""
        self._num_not_started += 1

    def woke(self, due_s: float, now_s: float) -> None:
        """The client woke up for something that was due."""
        self._timer_late_ms.add((now_s - due_s) * 1000)

    def pushed(self, due_s: float, now_s: float) -> None:
        """Tokens are pushed now that were due, and whose stream was open, since then."""
        self._push_late_ms.add((now_s - due_s) * 1000)

    def busy(self, share: float) -> None:
        """The client's thread computed for that share of about a second."""
        self._busiest_second = max(self._busiest_second, share)

    def prompt_judged(self, arrival_s: float, now_s: float) -> None:
        """The verdict on a conversation's prompt was read."""
        self._prompt_verdict_ms.add((now_s - arrival_s) * 1000)

    def judged(self, arrival_s: float, token: int, now_s: float) -> None:
        """The verdict on a conversation's token was read."""
        self.num_judged += 1
        self.verdict_lag_ms.add((now_s - arrival_s - self._schedule.pace.due_s(token)) * 1000)

    def ended_well(self) -> None:
        """The summary of a whole conversation was read."""
        self.num_ended_well += 1

    def ended_badly(self, error: GuardwireError, *, was_open: bool) -> None:
        """A conversation ended with an error.

        Args:
            error: The error. What only says that nobody answered is a failure even where nothing was open.
            was_open: Whether the server had opened the stream.
        """
        said_no = isinstance(error, _REFUSALS) or (isinstance(error, Unavailable) and bool(error.reason))
        outcome = "refused" if said_no and not was_open else "failed"
        self.num_errors[outcome, type(error).__name__, error.reason or error.code.name] += 1

    def result(self, now_s: float, *, interrupted: bool = False) -> LoadResult:
        """Everything, once the last conversation is over or the load was interrupted."""
        until_s = now_s if interrupted else math.inf
        offered, achieved = self._throughput(until_s, now_s)
        refused, failed = (
            sum(count for (kind, _, _), count in self.num_errors.items() if kind == outcome)
            for outcome in ("refused", "failed")
        )
        num_over = self.num_ended_well + refused + failed + self._num_not_started
        return LoadResult(
            interrupted=interrupted,
            elapsed_s=now_s,
            offered=offered,
            achieved=achieved,
            conversations=Outcomes(
                self.num_ended_well, refused, failed, self._num_not_started, offered.conversations - num_over
            ),
            errors=[ErrorCount(*error, count) for error, count in self.num_errors.most_common()],
            unjudged_tokens=offered.tokens - self.num_judged,
            verdict_lag_ms=self.verdict_lag_ms.percentiles(),
            prompt_verdict_ms=self._prompt_verdict_ms.percentiles(),
            client=self._client_health(),
        )

    def _throughput(self, until_s: float, now_s: float) -> tuple[Throughput, Throughput]:
        schedule = self._schedule
        num_arrived = schedule.num_arrived(until_s)
        num_due = schedule.num_tokens_due(until_s)
        arriving_s = min(self._duration_s, until_s)
        due_s = min(schedule.end_s, until_s)
        ending_s = max(arriving_s, now_s - schedule.pace.length_s)  # a conversation ends no sooner than its length
        return (
            Throughput(num_arrived, _per_s(num_arrived, arriving_s), num_due, _per_s(num_due, due_s)),
            Throughput(
                self.num_ended_well,
                _per_s(self.num_ended_well, ending_s),
                self.num_judged,
                _per_s(self.num_judged, max(due_s, now_s)),
            ),
        )

    def _client_health(self) -> ClientHealth:
        timer_late_ms = self._timer_late_ms.percentiles().p99
        push_late_ms = self._push_late_ms.percentiles().p99
        is_late = max(timer_late_ms or 0.0, push_late_ms or 0.0) > MAX_LATE_MS
        return ClientHealth(
            fell_behind=is_late or self._busiest_second > MAX_BUSY,
            timer_late_p99_ms=timer_late_ms,
            push_late_p99_ms=push_late_ms,
            busiest_second=self._busiest_second,
        )


def _per_s(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
