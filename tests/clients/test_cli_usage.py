"""What the command refuses before it asks a server, and how it says so."""

from __future__ import annotations

import io
import sys
from importlib import metadata

import pytest

from guardwire.cli import main
from tests.clients.command import run_main
from tests.clients.fake_server import FakeServer


def assert_one_line(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("guardwire: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["classify", "--nonsense"], ["moderate", "x"], ["classify", "--role", "x"]])
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: guardwire" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["moderate", "--help"], ["info", "--help"]])
def test_help_tells_the_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "3  the policy decided BLOCK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "--file", "/nowhere/at/all"], "cannot read /nowhere/at/all: No such file"),
        (["classify", "\udcff"], "is not Unicode text"),
    ],
)
def test_input_that_cannot_be_used(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert_one_line(message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "x", "--file", "y"], "TEXT or --file, not both"),
        (["moderate", "--prompt", "x", "y", "--file", "z"], "TEXT or --file, not both"),
        (["classify", "x", "--role", "assistant"], "give --prompt too"),
        (["classify", "x", "--role", "user", "--prompt", "y"], "does not go with --role user"),
        (["classify", "x", "--messages-file", "y"], "is the whole conversation"),
        (["info", "--tls-cert", "/nowhere/at/all"], "--tls-cert and --tls-key: give both or neither"),
        (["info", "--tls-key", "/nowhere/at/all"], "--tls-cert and --tls-key: give both or neither"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--target", "localhost:1"]) == 2
    assert_one_line(message, capsys)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_that_is_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["info", f"--timeout={seconds}"])
    assert caught.value.code == 2
    message = f"argument --timeout: must be a number above 0 and up to 1,000,000, not {seconds!r}"
    assert message in capsys.readouterr().err


async def test_a_deadline_that_expires_is_named(
    fake: FakeServer, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.silent = True
    for command in (["classify", "x"], ["moderate", "--prompt", "x", "y", "--text"], ["info"]):
        assert await run_main(*command, "--timeout", "0.05", target=target) == 1
        assert capsys.readouterr().err == (f"guardwire: error: {target}: no answer within 0.05 s (DEADLINE_EXCEEDED)\n")


@pytest.mark.parametrize("target", ["http://localhost:50051", "localhost", "", "50151"])
def test_a_target_that_names_no_server(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"argument --target: must be HOST:PORT, without http://, not {target!r}"
    with pytest.raises(SystemExit) as caught:
        main(["info", "--target", target])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    monkeypatch.setenv("GUARDWIRE_TARGET", target or "x")
    with pytest.raises(SystemExit) as caught:
        main(["info"])
    assert caught.value.code == 2
    assert "must be HOST:PORT" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"guardwire {metadata.version('guardwire')}\n"
    monkeypatch.setattr(metadata, "version", fail)  # as where the sources are on PYTHONPATH alone
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert "not installed" in capsys.readouterr().out


def test_no_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main(["classify"]) == 2
    assert "no text" in capsys.readouterr().err
