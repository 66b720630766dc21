"""The runbook: a section for every alert, commands that can be typed, and names that exist."""

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import guardwire_server
from guardwire import cli as client_cli
from guardwire_server import cli as server_cli
from guardwire_server.access import access_file
from guardwire_server.config import ServerConfig, load_config
from guardwire_server.core.policy import Policy
from tests.observability.contract import SERIES
from tests.observability.deployed import RUNBOOK_FILE, alerts, recordings, runbook_blocks
from tests.observability.promql import grouping, matched, series

TEXT = RUNBOOK_FILE.read_text()

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "guardwire-server": server_cli._parser,
    "guardwire": client_cli._parser,
}

ALERT_PARTS = ["Means", "Callers see", "Look", "Do"]


def commands() -> list[list[str]]:
    """Every command line of our own programs, as words, once."""
    found: dict[tuple[str, ...], None] = {}
    for line in (line for block in runbook_blocks("sh") for line in block.splitlines()):
        words = shlex.split(line)
        if words[0] == "kubectl" and "--" in words:  # within a container
            words = words[words.index("--") + 1 :]
        if words[0] in PARSERS:
            found[tuple(words)] = None
    return [list(words) for words in found]


def mentioned_commands() -> list[list[str]]:
    """Commands that sentences name, without their arguments."""
    return [words for code in inline_code() if (words := code.split())[0] in PARSERS and len(words) > 1]


def inline_code() -> list[str]:
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def sections(level: int, text: str) -> dict[str, str]:
    """The text below each heading of a level, up to the next one."""
    parts = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    described = sections(3, sections(2, TEXT)["Alerts"])
    assert set(described) == set(alerts())
    for name, text in described.items():
        assert re.findall(r"^\*\*([A-Z][a-z ]+)\.\*\*", text, re.MULTILINE) == ALERT_PARTS, name


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", TEXT, re.M)
    }
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("https://"):
            assert (RUNBOOK_FILE.parent / target).exists(), target


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_can_be_typed(words: list[str]) -> None:
    program, *arguments = words
    options = PARSERS[program]().parse_args(arguments)
    if arguments[0] == "serve":
        flags = {key: value for key, value in vars(options).items() if key != "config"}
        load_config(flags, {})


def test_commands_in_sentences_exist() -> None:
    assert mentioned_commands()
    for program, *arguments in mentioned_commands():
        with pytest.raises(SystemExit) as ended:
            PARSERS[program]().parse_args([*arguments, "--help"])
        assert ended.value.code == 0, (program, *arguments)


def test_both_programs_are_used() -> None:
    used = {(words[0], words[1]) for words in commands()}
    assert used >= {
        ("guardwire", "info"),
        ("guardwire", "classify"),
        ("guardwire-server", "serve"),
        ("guardwire-server", "health"),
        ("guardwire-server", "check-model"),
    }


@pytest.mark.parametrize("expression", runbook_blocks("promql"))
def test_queries_name_metrics_that_exist(expression: str) -> None:
    named = series(expression)
    assert named
    assert named <= set(SERIES) | recordings() | {"up"}
    known = {label for name in named & set(SERIES) for label in SERIES[name].labels} | {"job", "instance", "le"}
    assert grouping(expression) | matched(expression) <= known


def test_names_exist() -> None:
    """Whatever is written as code in one word of the kind `some_name` or `SOME_NAME` is a name of something."""
    sources = "".join(path.read_text() for path in Path(guardwire_server.__file__).parent.rglob("*.py"))
    reasons = set(re.findall(r"\"([A-Z]+(?:_[A-Z]+)+)\"", sources))
    known = {
        *ServerConfig.model_fields,
        *access_file.Limits.model_fields,
        *access_file.Tokens.model_fields,
        *Policy.__dataclass_fields__,
        *SERIES,
        *(label for metric in SERIES.values() for label in metric.labels),
        *(reason.lower() for reason in reasons),
        "not_judged",
        "trace_id",
        "round_robin",  # gRPC's
        "stop_grace_period",  # compose's
    }
    named = {code for code in inline_code() if re.fullmatch(r"[a-z]+(_[a-z]+)+", code)}
    assert len(named) > 20
    assert named <= known
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))) <= reasons | {
        *("DEADLINE_EXCEEDED", "FAILED_PRECONDITION", "NOT_SERVING", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED"),
        *("DATA_LOSS", "NOT_JUDGED"),
    }
