"""The command `guardwire moderate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.clients.command import run_main as run
from tests.clients.fake_server import FakeServer

OPENED = pb.ModerateStreamResponse(opened=pb.StreamOpened(session_id="fake-1"))


@pytest.mark.parametrize("how", ["tokens", "text"])
async def test_moderate_shows_every_token_and_the_cut(
    target: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["moderate", "--prompt", "hello", "the héllo bomb boom sky", *(["--text"] if how == "text" else [])]
    assert await run(*arguments, target=target) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompt    safe"
    assert [line.split() for line in lines[1:5]] == [
        ["0", "safe", "0.750", '"the"'],
        ["1", "safe", "0.750", '"', 'héllo"'],
        ["2", "unsafe", "0.750", "violent", '"', 'bomb"'],
        ["3", "unsafe", "0.750", "violent", '"', 'boom"'],
    ]
    rest = lines[-3:]
    assert rest[0] == "decision  BLOCK the answer at token 3: two in a row"
    assert rest[1] == 'keep      "the héllo"'
    assert rest[2].startswith("summary   blocked, answer unsafe, action BLOCK, ")


async def test_moderate_goes_on_when_asked_to(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("moderate", "--prompt", "hello", "bomb boom sky", "--all", target=target) == 3
    assert "summary   finished, answer unsafe, action BLOCK, 3 tokens: 1 safe" in capsys.readouterr().out
    assert await run("moderate", "--prompt", "hello", "the sky", target=target) == 0


async def test_moderate_tells_of_a_blocked_prompt(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("moderate", "--prompt", "bomb", "the sky", target=target) == 3
    out = capsys.readouterr().out
    assert "prompt    unsafe, violent" in out
    assert "decision  BLOCK the prompt: two in a row" in out
    assert "keep" not in out  # nothing of the answer is kept or not


async def test_what_is_kept_before_the_first_token(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("moderate", "--prompt", "hello", "bomb boom", target=target) == 3
    assert 'keep      ""' in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--observe-only"], ["--observe-only", "--all"]])
async def test_what_is_only_observed_is_no_block(
    options: list[str], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("moderate", "--prompt", "hello", "bomb boom sky", *options, target=target) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "decision  BLOCK the answer at token 1: two in a row (only observed)" in lines
    assert "answer unsafe, action BLOCK (only observed), 3 tokens" in lines[-1]


async def test_a_block_that_is_enforced_counts_more_than_one_observed(
    fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a stream whose policy was replaced by one that enforces."""
    decisions = [
        pb.Decision(action=pb.ACTION_BLOCK, role=pb.ROLE_USER, enforced=False),
        pb.Decision(action=pb.ACTION_BLOCK, role=pb.ROLE_ASSISTANT, enforced=True),
    ]
    fake.responses = [
        OPENED,
        *(pb.ModerateStreamResponse(decision=decision) for decision in decisions),
        pb.ModerateStreamResponse(
            summary=pb.Summary(action=pb.ACTION_BLOCK, risk_level=pb.RISK_LEVEL_UNSAFE, num_tokens=1)
        ),
    ]
    assert await run("moderate", "--prompt", "hello", "bomb", target=target) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("(only observed)") for line in lines if line.startswith("decision")] == [True, False]
    assert "action BLOCK, 1 tokens" in lines[-1]


@pytest.mark.parametrize("how", [[], ["--text"], ["--json"]])
@pytest.mark.parametrize("answer", ["", " \n"])
async def test_an_answer_that_is_empty_is_not_allowed(
    answer: str, how: list[str], fake: FakeServer, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answer"
    path.write_text(answer, encoding="utf-8")
    for arguments in ([answer], ["--file", str(path)]):
        assert await run("moderate", "--prompt", "hi", *arguments, *how, target=target) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == "guardwire: error: there is no answer to judge: it is empty or blank\n"
    assert fake.opens == []


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (pb.Summary(action=pb.ACTION_ALLOW), "the answer was not judged"),
        (
            pb.Summary(action=pb.ACTION_ALLOW, risk_level=pb.RISK_LEVEL_SAFE, num_tokens=5, num_safe_tokens=3),
            "2 tokens of the answer were not judged",
        ),
    ],
)
async def test_what_was_not_judged_is_an_error(
    summary: pb.Summary, message: str, fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.responses = [OPENED, pb.ModerateStreamResponse(summary=summary)]
    assert await run("moderate", "--prompt", "hello", "the sky", target=target) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("summary   ")
    assert captured.err == f"guardwire: error: {message}\n"


async def test_the_summary_counts_what_was_not_judged(
    fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.responses = [
        OPENED,
        pb.ModerateStreamResponse(decision=pb.Decision(action=pb.ACTION_BLOCK, role=pb.ROLE_ASSISTANT, enforced=True)),
        pb.ModerateStreamResponse(
            summary=pb.Summary(
                end_reason=pb.END_REASON_BLOCKED,
                risk_level=pb.RISK_LEVEL_UNSAFE,
                action=pb.ACTION_BLOCK,
                num_tokens=20,
                num_safe_tokens=4,
                num_unsafe_tokens=4,
            )
        ),
    ]
    assert await run("moderate", "--prompt", "hello", "the sky", target=target) == 3
    assert "20 tokens: 4 safe, 0 controversial, 4 unsafe, 12 not judged, " in capsys.readouterr().out
    fake.responses = None
    assert await run("moderate", "--prompt", "hello", "the sky", target=target) == 0
    assert "2 tokens: 2 safe, 0 controversial, 0 unsafe, 2000.0 ms" in capsys.readouterr().out


async def test_moderate_for_programs(
    fake: FakeServer, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.drains = True
    conversation = tmp_path / "conversation.json"
    conversation.write_text('[{"role": "user", "content": "hello"}]', encoding="utf-8")
    answer = tmp_path / "answer"
    answer.write_text("the bomb boom", encoding="utf-8")
    arguments = ["moderate", "--messages-file", str(conversation), "--file", str(answer), "--json", "--text"]
    assert await run(*arguments, target=target) == 3
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == [
        "prompt_verdict",
        "draining",
        *["token_verdict"] * 3,
        "decision",
        "summary",
    ]
    assert [line["text"] for line in lines[2:5]] == ["the", " bomb", " boom"]
    assert (lines[3]["risk_level"], lines[3]["category"], lines[3]["text_end_offset"]) == ("unsafe", "violent", 8)
    assert (lines[5]["action"], lines[5]["kept"], lines[5]["role"]) == ("block", "the", "assistant")
    assert lines[1]["deadline"].startswith("2027-")
    capsys.readouterr()
    assert await run("moderate", "--prompt", "bomb", "sky", "--json", target=target) == 3
    decisions = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"decision"' in line]
    assert [(decision["role"], decision["kept"]) for decision in decisions] == [("user", None)]


async def test_control_tokens_in_the_answer_are_text(fake: FakeServer, target: str) -> None:
    assert await run("moderate", "--prompt", "hello", "sky <|im_end|>", target=target) == 0
    pushed = [token_id for request in fake.requests for token_id in request.tokens.token_ids]
    assert pushed[1:] == [0]


async def test_missing_packages_are_named(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert await run("moderate", "--prompt", "hello", "sky", target=target) == 1
    assert "guardwire[cli]" in capsys.readouterr().err
    assert await run("moderate", "--prompt", "hello", "sky", "--text", target=target) == 0
