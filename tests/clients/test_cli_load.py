from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from guardwire import AsyncClient
from guardwire.cli import main
from guardwire.cli_load import Progress
from guardwire.load_report import ErrorCount, LoadReport, LoadResult, Outcomes
from guardwire.load_run import LoadOptions, LoadRun
from guardwire.load_schedule import Pace, Schedule
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.command import environment, run_python
from tests.clients.fake_server import Context, Failure, FakeServer, running

FULL = Failure(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    details=(error_details_pb2.ErrorInfo(domain="guardwire", reason="TOO_MANY_SESSIONS"),),
)
THREE_TOKENS = Pace(3, 100.0, 1)
OPENED = pb.ModerateStreamResponse(opened=pb.StreamOpened(session_id="fake-1"))


class LoadedServer(FakeServer):
    """The fake, which can keep callers waiting; asked what it is, it answers even where streams fail."""

    def __init__(self) -> None:
        super().__init__()
        self.holds_verdicts = False  # until the summary
        self.opens_in_pairs = False  # the first of two streams waits for the second
        self.has_stream_model = True
        self._paired = asyncio.Event()

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        failure, self.failure = self.failure, None
        response = await super().GetServerInfo(request, context)
        self.failure = failure
        if not self.has_stream_model:
            del response.models[:]
        return response

    async def ModerateStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModerateStreamRequest], context: Context
    ) -> AsyncIterator[pb.ModerateStreamResponse]:
        held: list[pb.ModerateStreamResponse] = []
        async for response in super().ModerateStream(request_iterator, context):
            if response.HasField("opened") and self.opens_in_pairs:
                if len(self.opens) == 2:
                    self._paired.set()
                await self._paired.wait()
            if response.HasField("verdicts") and self.holds_verdicts:
                held.append(response)
                continue
            if response.HasField("summary"):
                for verdicts in held:
                    yield verdicts
            yield response


@pytest.fixture
async def fake() -> AsyncIterator[LoadedServer]:
    async with running(LoadedServer()) as fake_server:
        yield fake_server


async def measure(
    client: AsyncClient,
    *arrivals_s: float,
    pace: Pace = THREE_TOKENS,
    max_streams: int = 10,
    grace_s: float = 60.0,
) -> LoadResult:
    report = LoadReport(Schedule(arrivals_s, pace), duration_s=1.0)
    options = LoadOptions(vocabulary_size=14, seed=0, max_streams=max_streams, grace_s=grace_s)
    lines: list[str] = []
    run = LoadRun(client, Schedule(arrivals_s, pace), options, report, lines.append)
    await run.run()
    assert "streams open" in lines[0]
    return report.result(run.now_s)


async def load(target: str, *arguments: str, **changes: str) -> tuple[int, str, str]:
    """Runs the command as a process of its own; gives its exit code and what it printed."""
    options = ["--rate", "20", "--duration-s", "0.5", "--tokens", "4", "--tokens-per-s", "50", *arguments]
    ran = await run_python("-W", "error", "-m", "guardwire", "load", "--target", target, *options, **changes)
    return ran.returncode, ran.stdout, ran.stderr


async def test_a_load_that_the_server_bears(fake: FakeServer, client: AsyncClient) -> None:
    result = await measure(client, 0.0, 0.01, 0.02, pace=Pace(7, 100.0, 3))
    assert result.conversations == Outcomes(ended_well=3, refused=0, failed=0, not_started=0, unfinished=0)
    assert (result.offered.tokens, result.achieved.tokens, result.unjudged_tokens) == (21, 21, 0)
    assert (result.verdict_lag_ms.num_samples, result.prompt_verdict_ms.num_samples) == (21, 3)
    assert (result.errors, result.all_ended_well) == ([], True)
    pushed = [list(request.tokens.token_ids) for request in fake.requests if request.HasField("tokens")]
    assert sorted(map(len, pushed)) == [1, 1, 1, 3, 3, 3, 3, 3, 3]
    assert {token_id for ids in pushed for token_id in ids} <= set(range(7))


async def test_the_lag_includes_the_waiting_for_an_answer(fake: LoadedServer, client: AsyncClient) -> None:
    fake.holds_verdicts = True
    lag = (await measure(client, 0.0, pace=Pace(10, 50.0, 1))).verdict_lag_ms
    assert lag.max is not None
    assert lag.p50 is not None
    assert lag.max >= 179.9  # the first token waits for the last one, nine intervals of 20 ms later
    assert lag.p50 >= 79.9


async def test_a_server_that_stalls_neither_holds_up_the_others_nor_hides_it(
    fake: LoadedServer, client: AsyncClient
) -> None:
    fake.opens_in_pairs = True
    result = await measure(client, 0.0, 0.2, pace=Pace(2, 50.0, 1))
    assert result.conversations.ended_well == 2
    assert result.verdict_lag_ms.max is not None
    assert result.verdict_lag_ms.max >= 179.9  # due after 20 ms, and not pushed before the second one came
    assert result.prompt_verdict_ms.max is not None
    assert result.prompt_verdict_ms.max >= 199.9


async def test_arrivals_beyond_the_limit_are_counted(fake: FakeServer, client: AsyncClient) -> None:
    result = await measure(client, 0.0, 0.0, 0.0, max_streams=1)
    assert result.conversations == Outcomes(ended_well=1, refused=0, failed=0, not_started=2, unfinished=0)
    assert (result.offered.tokens, result.unjudged_tokens, len(fake.opens)) == (9, 6, 1)
    assert not result.all_ended_well


async def test_a_stream_that_breaks_has_failed(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure = FULL
    fake.fails_after = 2
    result = await measure(client, 0.0)
    assert result.errors == [ErrorCount("failed", "Overloaded", "TOO_MANY_SESSIONS", 1)]
    assert (result.achieved.tokens, result.unjudged_tokens) == (1, 2)


@pytest.mark.parametrize("num_requests", [0, 1], ids=["at once", "once it is open"])
async def test_a_server_that_falls_silent_is_not_waited_for_for_ever(
    fake: FakeServer, client: AsyncClient, num_requests: int
) -> None:
    fake.silent = True
    fake.fails_after = num_requests
    result = await measure(client, 0.0, grace_s=0.1)
    assert result.errors == [ErrorCount("failed", "DeadlineExceeded", "DEADLINE_EXCEEDED", 1)]


@pytest.mark.parametrize("end", ["blocked", "not judged"])
async def test_an_end_before_every_token_is_judged_is_no_good_end(
    fake: FakeServer, client: AsyncClient, end: str
) -> None:
    reason = pb.END_REASON_BLOCKED if end == "blocked" else pb.END_REASON_FINISHED
    verdicts = pb.Verdicts(
        risk_levels=[pb.RISK_LEVEL_UNSPECIFIED] * 3,
        safe_probabilities=[0.0] * 3,
        controversial_probabilities=[0.0] * 3,
        unsafe_probabilities=[0.0] * 3,
        categories=[pb.CATEGORY_UNSPECIFIED] * 3,
        category_probabilities=[0.0] * 3,
    )
    fake.responses = [
        OPENED,
        pb.ModerateStreamResponse(verdicts=verdicts),
        pb.ModerateStreamResponse(summary=pb.Summary(end_reason=reason)),
    ]
    result = await measure(client, 0.0)
    assert result.errors == [ErrorCount("failed", "ServerFault", "INTERNAL", 1)]
    assert (result.achieved.tokens, result.unjudged_tokens) == (0, 3)


async def test_what_it_prints(fake: FakeServer, target: str) -> None:
    code, out, err = await load(target, GUARDWIRE_API_KEY="key-1")
    assert (code, err) == (0, "")
    names = ["offered", "achieved", "verdict lag", "prompt verdict", "conversations", "this client"]
    lines = out.splitlines()
    assert [line[:17].strip() for line in lines[:6]] == names
    assert lines[4].endswith(" ended well, 0 refused, 0 failed, 0 not started")
    assert fake.metadata["authorization"] == "Bearer key-1"


async def test_json_adds_up(fake: FakeServer, target: str) -> None:
    code, out, err = await load(target, "--json", "--seed", "3")
    assert (code, err) == (0, "")
    result: dict[str, Any] = json.loads(out)
    assert result["offered"]["conversations"] == sum(result["conversations"].values()) == len(fake.opens) > 1
    assert result["offered"]["tokens"] == 4 * len(fake.opens)
    assert result["achieved"]["tokens"] + result["unjudged_tokens"] == result["offered"]["tokens"]
    lag = result["verdict_lag_ms"]
    assert lag["num_samples"] == result["achieved"]["tokens"]
    assert 0 < lag["p50"] <= lag["p90"] <= lag["p99"] <= lag["max"]
    assert (result["interrupted"], result["errors"]) == (False, [])


async def test_refused_streams_are_counted_with_their_reason(fake: FakeServer, target: str) -> None:
    fake.failure = FULL
    code, out, err = await load(target)
    assert (code, err) == (1, "")
    num = len(fake.opens)
    assert f"conversations    0 ended well, {num} refused, 0 failed, 0 not started" in out
    assert f"  refused        {num} by Overloaded, TOO_MANY_SESSIONS" in out
    assert f"not judged       {4 * num} tokens" in out
    assert "verdict lag      p50 none" in out


async def test_an_interrupted_load_tells_what_it_measured(fake: FakeServer, target: str) -> None:
    program = (
        "import signal, sys; from guardwire.cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main(sys.argv[1:]))"
    )  # where pytest runs in the background, its children begin with the signal ignored
    arguments = ["load", "--json", "--target", target, "--rate", "50", "--tokens", "1000000", "--max-streams", "1"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=PIPE, stderr=PIPE, env=environment()
    )
    await fake.wait_active(1)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (130, b"")
    result = json.loads(out)
    assert result["interrupted"]
    assert result["conversations"]["unfinished"] >= 1
    assert sum(result["conversations"].values()) == result["offered"]["conversations"]
    assert result["offered"]["tokens"] < 1_000_000
    await fake.wait_active(0)


async def test_a_server_without_a_stream_model(fake: LoadedServer, target: str) -> None:
    fake.has_stream_model = False
    code, out, err = await load(target)
    assert (code, out, err) == (1, "", "guardwire: error: the server has no stream model, which a load is for\n")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rate=0", "--rate: must be a number above 0 and up to 10,000, not '0'"),
        ("--rate=nan", "--rate: must be a number"),
        ("--duration-s=-1", "--duration-s: must be a number above 0 and up to 86,400"),
        ("--tokens=0", "--tokens: must be a whole number from 1 to 1,000,000"),
        ("--tokens=1.5", "--tokens: must be a whole number"),
        ("--tokens-per-s=inf", "--tokens-per-s: must be a number"),
        ("--chunk=x", "--chunk: must be a whole number"),
        ("--max-streams=0", "--max-streams: must be a whole number from 1 to 100,000"),
        ("--seed=x", "--seed: invalid int value"),
    ],
)
def test_arguments_out_of_bounds(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["load", argument])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1000", "--duration-s", "80000"], "80,000,000 conversations: at most 1,000,000"),
        (["--rate", "0.0001"], "no conversation arrives in this time"),
    ],
)
def test_loads_that_cannot_be(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--target", "localhost:1", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_tells_its_own_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["load", "--help"])
    out = capsys.readouterr().out
    assert "130  interrupted" in out
    assert "BLOCK" not in out


def test_progress_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for output, expected in ((Terminal(), "\rlonger\rshort \r     \r"), (io.StringIO(), "")):
        progress = Progress(output)
        progress.show("longer")
        progress.show("short")
        progress.clear()
        assert output.getvalue() == expected
