"""Runs a load against a server.

Theory of operation: one task waits for arrivals and starts a conversation at each; a conversation reads in one task and
pushes in another, which sleeps until tokens are due and never looks at what was answered. Nobody waits for the server
before the next thing on the schedule, but for one: tokens cannot be pushed before their stream is open. Their lag
counts from when they were due all the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from guardwire.async_client import AsyncClient
from guardwire.async_stream import AsyncModerateStream
from guardwire.conversation import Message
from guardwire.enums import EndReason, Role
from guardwire.errors import GuardwireError, broken_contract
from guardwire.load_report import LoadReport
from guardwire.load_schedule import Schedule, token_ids
from guardwire.results import PromptVerdict, Summary, TokenVerdicts

PROMPT = "How do I cook rice for four people?"

_WATCH_EVERY_S = 1.0
_MIN_WATCHED_S = 0.5  # the share of less than that says little


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the scheduled conversations are held."""

    vocabulary_size: int
    seed: int
    max_streams: int
    """Open at once; arrivals beyond it are not started."""
    grace_s: float
    """How much longer than its schedule a stream may take; it fails then."""


class LoadRun:
    """One load: made, run once, and asked for its report.

    Owner: the event loop that runs it.
    """

    def __init__(
        self,
        client: AsyncClient,
        schedule: Schedule,
        options: LoadOptions,
        report: LoadReport,
        on_second: Callable[[str], None],
    ) -> None:
        """Makes a load; nothing is sent yet.

        Args:
            client: Whose connection all streams share.
            schedule: What is due.
            options: How it is done.
            report: Takes what is measured.
            on_second: Takes a line about how it goes, about once a second.
        """
        self._client = client
        self._schedule = schedule
        self._options = options
        self._report = report
        self._on_second = on_second
        self._num_open = 0
        self._begin_s = 0.0

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin_s

    async def run(self) -> None:
        """Holds all conversations; returns when the last one is over. Cancelled, it leaves every stream."""
        self._begin_s = time.monotonic()
        watch = asyncio.create_task(self._watch(), name="guardwire-load-watch")
        try:
            async with asyncio.TaskGroup() as conversations:
                for number, arrival_s in enumerate(self._schedule.arrivals_s):
                    await self._sleep_until(arrival_s)
                    if self._num_open < self._options.max_streams:
                        self._num_open += 1
                        conversations.create_task(self._converse(number, arrival_s))
                    else:
                        self._report.not_started()
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def _converse(self, number: int, arrival_s: float) -> None:
        ids = token_ids(self._options.vocabulary_size, self._options.seed, number)
        stream = self._client.moderate(
            [Message(Role.USER, PROMPT)], timeout_s=self._schedule.pace.length_s + self._options.grace_s
        )
        was_open = False
        try:
            async with stream, asyncio.TaskGroup() as tasks:
                was_open = True
                tasks.create_task(self._push(stream, ids, arrival_s))
                await self._read(stream, arrival_s)
        except* GuardwireError as errors:
            self._report.ended_badly(_first(errors), was_open=was_open)
        else:
            self._report.ended_well()
        finally:
            self._num_open -= 1

    async def _push(self, stream: AsyncModerateStream, ids: Iterator[int], arrival_s: float) -> None:
        opened_s = self.now_s
        for push in self._schedule.pace.pushes():
            due_s = arrival_s + push.due_s
            await self._sleep_until(due_s)
            self._report.pushed(max(due_s, opened_s), self.now_s)
            await stream.push(list(itertools.islice(ids, push.num_tokens)))
        await stream.finish()

    async def _read(self, stream: AsyncModerateStream, arrival_s: float) -> None:
        """Reads to the end.

        Raises:
            GuardwireError: The stream failed, or its end is not that of a whole conversation.
        """
        num_judged = 0
        async for update in stream:
            now_s = self.now_s
            match update:
                case PromptVerdict() if update.risk_level is not None:
                    self._report.prompt_judged(arrival_s, now_s)
                case TokenVerdicts():
                    for position, risk_level in enumerate(update.risk_levels):
                        if risk_level is not None:
                            num_judged += 1
                            self._report.judged(arrival_s, update.start_index + position, now_s)
                case Summary() if update.end_reason is not EndReason.FINISHED:
                    raise broken_contract(f"the server ended the stream by itself: {update.end_reason}")
        if num_judged != self._schedule.pace.num_tokens:
            raise broken_contract(f"the server judged {num_judged} of {self._schedule.pace.num_tokens} tokens")

    async def _sleep_until(self, due_s: float) -> None:
        """Waits until something is due; what is due already says nothing about this client's timers."""
        left_s = due_s - self.now_s
        if left_s > 0:
            await asyncio.sleep(left_s)
            self._report.woke(due_s, self.now_s)

    async def _watch(self) -> None:
        """Tells how it goes, and how busy this thread is."""
        wall_s, thread_s = time.monotonic(), time.thread_time()
        try:
            while True:
                self._on_second(self._progress())
                await asyncio.sleep(_WATCH_EVERY_S)
                self._note_busy(wall_s, thread_s)
                wall_s, thread_s = time.monotonic(), time.thread_time()
        finally:
            self._note_busy(wall_s, thread_s)

    def _note_busy(self, wall_s: float, thread_s: float) -> None:
        watched_s = time.monotonic() - wall_s
        if watched_s >= _MIN_WATCHED_S:
            self._report.busy((time.thread_time() - thread_s) / watched_s)

    def _progress(self) -> str:
        num_failed = sum(self._report.num_errors.values())
        return (
            f"{self.now_s:.0f} of {self._schedule.end_s:.0f} s, {self._num_open} streams open, "
            f"{self._report.num_ended_well} ended well, {num_failed} with an error, "
            f"{self._report.num_judged} tokens judged"
        )


def _first(errors: BaseExceptionGroup[GuardwireError]) -> GuardwireError:
    """The first of errors that tell the same: whoever pushes and whoever reads is told how the stream ended."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, GuardwireError)
    return error
