"""`guardwire load`: open-loop traffic against a running server, and how long its verdicts take."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING, TextIO

from guardwire.cli_arguments import number
from guardwire.cli_connection import connect_async
from guardwire.cli_input import InputError, UsageError
from guardwire.cli_output import Screen
from guardwire.client import Client
from guardwire.enums import ModelKind
from guardwire.load_report import MAX_SAMPLES, ClientHealth, LoadReport, LoadResult
from guardwire.load_run import LoadOptions, LoadRun
from guardwire.load_schedule import Pace, Schedule, poisson_arrivals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EXIT_NOT_ALL_WELL = 1

_MAX_CONVERSATIONS = 1_000_000  # their arrivals are kept, 8 bytes each

_EPILOG = """\
exit codes:
  0    every conversation that arrived ended well
  1    some did not, or an error
  2    the command line is wrong
  130  interrupted; what was measured so far is printed
"""


def add_arguments(commands: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds the command."""
    summary = "send conversations at a steady rate and measure how long verdicts take"
    parser = commands.add_parser("load", help=summary, description=f"{summary.capitalize()}.", epilog=_EPILOG)
    rate, seconds = number(float, 10_000), number(float, 86_400)
    for flag, convert, default, about in (
        ("--rate", rate, 2.0, "conversations a second, on average; they arrive at random"),
        ("--duration-s", seconds, 10.0, "for how many seconds they arrive"),
        ("--tokens", number(int, 1_000_000), 100, "tokens in each answer"),
        ("--tokens-per-s", rate, 20.0, "tokens a second of each answer"),
        ("--chunk", number(int, 1_000_000), 1, "tokens in a push"),
        ("--max-streams", number(int, 100_000), 1000, "streams open at once; more are counted as not started"),
        ("--seed", int, 0, "another number gives other arrivals and tokens"),
    ):
        parser.add_argument(flag, type=convert, default=default, metavar="N", help=f"{about}; default: {default:g}")
    parser.set_defaults(command=load)
    return parser


def load(client: Client, arguments: argparse.Namespace, screen: Screen) -> int:
    """Runs the command; gives its exit code.

    Raises:
        KeyboardInterrupt: It was interrupted; what was measured is printed.
    """
    schedule = _schedule(arguments)
    options = LoadOptions(_vocabulary_size(client), arguments.seed, arguments.max_streams, arguments.timeout)
    result = asyncio.run(_measure(arguments, schedule, options))
    if arguments.json:
        screen.json(result, indent=2)
    else:
        _show(result, screen)
    if result.interrupted:
        raise KeyboardInterrupt
    return 0 if result.all_ended_well else EXIT_NOT_ALL_WELL


def _schedule(arguments: argparse.Namespace) -> Schedule:
    if arguments.rate * arguments.duration_s > _MAX_CONVERSATIONS:
        raise UsageError(
            f"--rate times --duration-s is {arguments.rate * arguments.duration_s:,.0f} conversations: "
            f"at most {_MAX_CONVERSATIONS:,}"
        )
    arrivals_s = poisson_arrivals(arguments.rate, arguments.duration_s, arguments.seed)
    if not arrivals_s:
        raise UsageError("no conversation arrives in this time: raise --rate or --duration-s, or change --seed")
    return Schedule(arrivals_s, Pace(arguments.tokens, arguments.tokens_per_s, arguments.chunk))


def _vocabulary_size(client: Client) -> int:
    model = client.server_info().model(ModelKind.STREAM)
    if model is None:
        raise InputError("the server has no stream model, which a load is for")
    return model.vocabulary_size


async def _measure(arguments: argparse.Namespace, schedule: Schedule, options: LoadOptions) -> LoadResult:
    report = LoadReport(schedule, arguments.duration_s)
    progress = Progress(sys.stderr)
    async with connect_async(arguments) as client:
        run = LoadRun(client, schedule, options, report, progress.show)
        try:
            await run.run()
            return report.result(run.now_s)
        except asyncio.CancelledError:  # Ctrl-C: asyncio.run cancels what it runs, and nothing comes after this
            return report.result(run.now_s, interrupted=True)
        finally:
            progress.clear()


class Progress:
    """One line that changes, on a terminal; nothing anywhere else."""

    def __init__(self, output: TextIO) -> None:
        self._output = output if output.isatty() else None
        self._width = 0

    def show(self, line: str) -> None:
        """Replaces the line."""
        if self._output is not None:
            print(f"\r{line:<{self._width}}", end="", file=self._output, flush=True)
            self._width = len(line)

    def clear(self) -> None:
        """Leaves nothing of it."""
        self.show("")
        if self._output is not None:
            print("\r", end="", file=self._output, flush=True)


def _show(result: LoadResult, screen: Screen) -> None:
    for name, what in (("offered", result.offered), ("achieved", result.achieved)):
        screen.line(
            f"{name:<15}  {what.conversations_per_s:.2f} conversations/s ({what.conversations}), "
            f"{what.tokens_per_s:.1f} tokens/s ({what.tokens})"
        )
    lag = result.verdict_lag_ms
    screen.line(f"verdict lag      p50 {_ms(lag.p50)}, p90 {_ms(lag.p90)}, p99 {_ms(lag.p99)}, max {_ms(lag.max)}")
    screen.line(f"prompt verdict   p50 {_ms(result.prompt_verdict_ms.p50)}, p99 {_ms(result.prompt_verdict_ms.p99)}")
    if lag.num_samples > MAX_SAMPLES:
        screen.line(
            f"                 percentiles of {MAX_SAMPLES:,} of the {lag.num_samples:,} lags, chosen at random"
        )
    _show_outcomes(result, screen)
    _show_client(result.client, screen)
    if result.interrupted:
        screen.line(f"interrupted      after {result.elapsed_s:.1f} s", "yellow")


def _show_outcomes(result: LoadResult, screen: Screen) -> None:
    ends = result.conversations
    unfinished = f", {ends.unfinished} unfinished" if result.interrupted else ""
    screen.line(
        f"conversations    {ends.ended_well} ended well, {ends.refused} refused, {ends.failed} failed, "
        f"{ends.not_started} not started{unfinished}",
        "green" if result.all_ended_well else "red",
    )
    for error in result.errors:
        screen.line(f"  {error.outcome:<15}{error.count} by {error.error}, {error.reason}")
    if result.unjudged_tokens:
        screen.line(f"not judged       {result.unjudged_tokens} tokens: the verdict lag cannot know of them", "red")


def _show_client(client: ClientHealth, screen: Screen) -> None:
    screen.line(
        f"this client      woke up late by p99 {_ms(client.timer_late_p99_ms)}, pushed late by p99 "
        f"{_ms(client.push_late_p99_ms)}, computed {client.busiest_second:.0%} of its busiest second"
    )
    if client.fell_behind:
        screen.line(
            "                 IT FELL BEHIND its schedule: the figures speak of this client, or of the network, "
            "not of the server; lower --rate, or share it among several clients",
            "bold red",
        )


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} ms"
