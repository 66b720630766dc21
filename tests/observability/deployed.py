"""What is deployed to see Guardwire by: the rules, the dashboard, the runbook, what scales it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES_FILE = DEPLOY / "observability" / "prometheus" / "guardwire.rules.yaml"
RULE_TEST_FILES = sorted(RULES_FILE.parent.glob("*.test.yaml"))
DASHBOARD_FILE = DEPLOY / "observability" / "grafana" / "guardwire.json"
RUNBOOK_FILE = DEPLOY / "RUNBOOK.md"
SCALING_FILE = DEPLOY / "kubernetes" / "components" / "autoscaling" / "scaled-object.yaml"

Rule = dict[str, Any]
Panel = dict[str, Any]


def rules() -> list[Rule]:
    """All rules, alerts and recordings."""
    return [rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]]


def seldom_evaluated_rules() -> set[str]:
    """The names of rules in groups with an interval of their own, which need not have come round yet."""
    groups = yaml.safe_load(RULES_FILE.read_text())["groups"]
    return {rule.get("alert") or rule["record"] for group in groups if "interval" in group for rule in group["rules"]}


def alerts() -> dict[str, Rule]:
    """The alert rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recordings() -> set[str]:
    """The names of the series that rules record."""
    return {rule["record"] for rule in rules() if "record" in rule}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    read: dict[str, Any] = json.loads(DASHBOARD_FILE.read_text())
    return read


def panels() -> list[Panel]:
    """The dashboard's panels without the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_queries() -> list[tuple[str, str]]:
    """A name and the PromQL of each query of each panel."""
    return [
        (f"{panel['title']}, {target['refId']}", target["expr"]) for panel in panels() for target in panel["targets"]
    ]


def runbook_blocks(language: str) -> list[str]:
    """The blocks of code in the runbook that are in this language."""
    return [block.strip() for block in re.findall(rf"```{language}\n(.*?)```", RUNBOOK_FILE.read_text(), re.DOTALL)]


def scaling_queries() -> list[str]:
    """The PromQL by which Kubernetes decides how many servers there should be."""
    triggers = yaml.safe_load(SCALING_FILE.read_text())["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers]
