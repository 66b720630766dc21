from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from guardwire.cli import main
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.command import run_main as run
from tests.clients.command import run_python
from tests.clients.fake_server import Failure, FakeServer


def give(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


async def test_classify_prints_the_verdict(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("classify", "a bomb", target=target) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "label          unsafe",
        "categories     violent",
        "refusal        not asked",
        "probabilities  safe 0.125  controversial 0.125  unsafe 0.750",
        "action         BLOCK (the rule of the word)",
        "judged by      fake-gen, policy default, 1 forward passes, 1.5 ms",
    ]


@pytest.mark.parametrize(("text", "code"), [("hello", 0), ("knife", 0), ("bomb", 3), ("gibberish", 3)])
async def test_the_exit_code_is_the_action(
    target: str, text: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("classify", text, target=target) == code
    assert ("not judged" in capsys.readouterr().out) == (text == "gibberish")


async def test_what_a_policy_only_observes_is_no_block(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("classify", "a bomb", "--policy", "observe", target=target) == 0
    assert "action         BLOCK (the rule of the word) (only observed)\n" in capsys.readouterr().out
    assert await run("classify", "hello", "--policy", "observe", target=target) == 0
    assert "action         ALLOW (the rule of the word)\n" in capsys.readouterr().out
    assert await run("classify", "a bomb", "--policy", "observe", "--json", target=target) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["action"], document["enforced"]) == ("block", False)
    assert await run("classify", "a bomb", "--json", target=target) == 3
    assert json.loads(capsys.readouterr().out)["enforced"] is True


@pytest.mark.parametrize("how", [[], ["--json"]])
async def test_what_was_not_judged_is_not_allowed(
    how: list[str], target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("classify", "gibberish", "--policy", "observe", *how, target=target) == 1
    captured = capsys.readouterr()
    assert captured.out
    assert captured.err == "guardwire: error: the text was not judged\n"


async def test_classify_for_programs(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("classify", "--prompt", "hello", "i cannot", "--json", "--policy", "strict", target=target) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["risk_level"], document["refusal"], document["action"]) == ("safe", "yes", "allow")
    assert (document["policy"], document["probabilities"]["safe"]) == ("strict", 0.75)


async def test_where_the_text_comes_from(
    fake: FakeServer, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_file = tmp_path / "text"
    text_file.write_text("from a file\n", encoding="utf-8")
    messages_file = tmp_path / "messages.json"
    messages_file.write_text('{"messages": [{"role": "user", "content": "from JSON"}]}', encoding="utf-8")
    assert await run("classify", "--file", str(text_file), target=target) == 0
    assert await run("classify", "--messages-file", str(messages_file), target=target) == 0
    for arguments in (["-"], []):
        give(monkeypatch, "from stdin\n")
        assert await run("classify", *arguments, target=target) == 0
    assert await run("classify", "--role", "assistant", "--prompt", "hello", "the answer", target=target) == 0
    assert [[(m.role, m.content) for m in request.messages] for request in fake.classify_requests] == [
        [(pb.ROLE_USER, "from a file")],
        [(pb.ROLE_USER, "from JSON")],
        [(pb.ROLE_USER, "from stdin")],
        [(pb.ROLE_USER, "from stdin")],
        [(pb.ROLE_USER, "hello"), (pb.ROLE_ASSISTANT, "the answer")],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b'{"messages": 1}', "must hold a list of messages"),
        (b'[{"role": "robot", "content": "x"}]', "messages[0].role is 'robot'"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_messages_file_that_cannot_be_used(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "messages.json"
    path.write_bytes(content)
    assert main(["classify", "--messages-file", str(path)]) == 1
    assert message in capsys.readouterr().err


async def test_errors_are_one_line(fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    details = (
        error_details_pb2.ErrorInfo(domain="guardwire", reason="FULL"),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2)),
        error_details_pb2.RequestInfo(request_id="r-1"),
        error_details_pb2.BadRequest(field_violations=[error_details_pb2.BadRequest.FieldViolation(field="policy")]),
    )
    fake.failure = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server\nis full", details)
    for command in (["classify", "x"], ["moderate", "--prompt", "x", "y"], ["info"]):
        assert await run(*command, target=target) == 1
        assert capsys.readouterr().err == (
            f"guardwire: error: {target}: the server is full "
            "(RESOURCE_EXHAUSTED, FULL, field policy, retry after 2 s, request id r-1)\n"
        )


async def test_info(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("info", target=target) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "server   0.1.0"
    assert lines[1] == (
        "model    fake-stream (stream, revision 1, float32 on cpu, 8192 tokens of context, for trying out only)"
    )
    assert lines[2] == "policy   default (loose, debounce same level): blocks Unsafe"
    assert lines[3] == f"policies version {'5' * 64}"
    assert await run("info", "--json", target=target) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["models"][0]["kind"], told["policies_version"]) == ("stream", "5" * 64)


async def test_info_of_a_server_that_tells_no_version_of_its_policies(
    fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.policies_version = ""
    assert await run("info", target=target) == 0
    assert "version" not in capsys.readouterr().out


async def test_colours_on_a_terminal_only(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    outputs = []
    for rich_is_missing in (False, True):
        if rich_is_missing:
            monkeypatch.setitem(sys.modules, "rich.console", None)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert await run("classify", "[bold]bomb[/bold] :bomb: bomb", target=target) == 3
        outputs.append(terminal.getvalue())
    assert "\x1b[31mlabel          unsafe\x1b[0m" in outputs[0]
    assert "\x1b" not in outputs[1]


async def test_as_a_process(target: str) -> None:
    ran = await run_python("-m", "guardwire", "classify", stdin="a bomb\n", GUARDWIRE_TARGET=target)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert ran.stdout.startswith("label          unsafe\n")
    ran = await run_python(
        "-m", "guardwire", "moderate", "--prompt", "hello", stdin="the héllo sky", GUARDWIRE_TARGET=target
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert '" héllo"' in ran.stdout


async def test_a_process_without_a_server() -> None:
    ran = await run_python("-m", "guardwire", "info", "--target", "localhost:1", "--timeout", "10")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("guardwire: error: localhost:1: ")
    assert "UNAVAILABLE" in ran.stderr
    assert "Traceback" not in ran.stderr


async def test_an_interrupted_command(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("guardwire.client.Client.server_info", interrupt)
    assert main(["info"]) == 130
