"""The alert rules: valid, each shown by a test to fire and not to fire, and written against metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import guardwire_server
from guardwire_server.telemetry.streams import FAULTS
from tests.observability.contract import SERIES
from tests.observability.deployed import RULE_TEST_FILES, RULES_FILE, alerts, recordings, rules
from tests.observability.promql import grouping, matched, series
from tests.tools import skip_without

RUNBOOK = "https://github.com/guardwire/guardwire/blob/main/deploy/RUNBOOK.md"

TARGET_LABELS = {"job", "instance", "le"}
"""What Prometheus itself puts on series."""

PROMETHEUS_SERIES = {"up"}


def promtool(*arguments: str) -> str:
    """Runs promtool, which must be content; returns what it says."""
    program = shutil.which("promtool") or skip_without("promtool (Debian package prometheus)")
    run = subprocess.run(
        [program, *arguments], cwd=RULES_FILE.parent, capture_output=True, text=True, timeout=100, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_rules_are_valid() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", RULES_FILE.name)


@pytest.mark.parametrize("file", RULE_TEST_FILES, ids=lambda file: file.name)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file.name)


def test_every_alert_is_shown_to_fire_and_not_to_fire() -> None:
    tests = [test for file in RULE_TEST_FILES for test in yaml.safe_load(file.read_text())["tests"]]
    shown = [case for test in tests for case in test.get("alert_rule_test", ())]
    assert {case["alertname"] for case in shown if case["exp_alerts"]} == set(alerts())
    silent = {case["alertname"] for case in shown if not case["exp_alerts"]}
    # This one is shown not to fire for one of several servers, which the same case says.
    assert silent | {"GuardwireDeviceStalled"} == set(alerts())


@pytest.mark.parametrize("alert", alerts().values(), ids=alerts().keys())
def test_alerts_tell_what_to_do(alert: dict[str, Any]) -> None:
    name, annotations = alert["alert"], alert["annotations"]
    assert re.fullmatch(r"Guardwire[A-Z][A-Za-z]+", name)
    assert alert["labels"] == {"severity": alert["labels"]["severity"]}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith((".", ". (below 0: it has)."))
    assert annotations["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
    for label in re.findall(r"\$labels\.(\w+)", " ".join(annotations.values())):
        assert label in grouping(alert["expr"]), f"{label} is not among the labels of the alert"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_name_metrics_that_exist(rule: dict[str, Any]) -> None:
    named = series(rule["expr"])
    assert named
    assert named <= set(SERIES) | PROMETHEUS_SERIES | recordings()
    known = {label for name in named & set(SERIES) for label in SERIES[name].labels} | TARGET_LABELS
    known |= {label for other in rules() if other.get("record") in named for label in grouping(other["expr"])}
    assert grouping(rule["expr"]) | matched(rule["expr"]) <= known


def test_streams_that_fail_are_those_that_a_server_counts_from_its_start() -> None:
    (reasons,) = re.findall(r'guardwire_end_reason=~"([^"]+)"', alerts()["GuardwireStreamsFail"]["expr"])
    assert set(reasons.split("|")) == set(FAULTS)
    sources = "".join(path.read_text() for path in Path(guardwire_server.__file__).parent.rglob("*.py"))
    raised = re.findall(r'Engine(?:Error|Unavailable)\(\s*"([A-Z_]+)"', sources)
    assert set(FAULTS) == {reason.lower() for reason in raised} - {"stopped"}  # which nobody is left to be told of


RARE = re.compile(
    r"(?:rpc_server_call_duration_seconds_count|guardwire_request_rejected_total|guardwire_decision_taken_total)"
    r"(?:\{[^}]*\})?"
)
"""Counters of which a series begins with its first events, as rules choose them."""


@pytest.mark.parametrize(
    "rule",
    [rule for rule in rules() if RARE.search(rule["expr"])],
    ids=lambda rule: rule.get("alert") or rule["record"],
)
def test_rules_see_what_a_counter_is_born_with(rule: dict[str, Any]) -> None:
    """A counter that is younger than the window is taken as it is, any other by how much it rose."""
    (selector,) = set(RARE.findall(rule["expr"]))
    (window,) = set(re.findall(r"\[(\w+)\]", rule["expr"]))
    born = f"(max_over_time({selector}[{window}]) unless {selector} offset {window})"
    assert f"{born} or increase({selector}[{window}])" in " ".join(rule["expr"].split())
    assert len(RARE.findall(rule["expr"])) == 3
