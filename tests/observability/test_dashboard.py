"""The dashboard: fresh, explained, laid out, and written against metrics that exist."""

import itertools
import re
from typing import Any

import pytest

from deploy.observability.grafana.make_dashboard import render
from tests.observability.contract import METRICS, SERIES
from tests.observability.deployed import DASHBOARD_FILE, dashboard, panel_queries, panels
from tests.observability.promql import grouping, matched, series

GRAFANA_UNITS = {"s", "d", "none", "percentunit", "dateTimeFromNow"}
OWN_UNIT = re.compile(r"count:[a-z]+/s")

TARGET_LABELS = {"job", "instance", "le"}


def test_it_is_what_the_script_makes() -> None:
    assert DASHBOARD_FILE.read_text() == render(), "run: python -m deploy.observability.grafana.make_dashboard"


def test_it_can_be_provisioned() -> None:
    read = dashboard()
    assert read["uid"] == "guardwire"
    assert "id" not in read  # Grafana gives it
    assert read["schemaVersion"] >= 39
    assert [variable["name"] for variable in read["templating"]["list"]] == ["datasource", "job", "instance"]
    ids = [panel["id"] for panel in read["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panels_are_explained(panel: dict[str, Any]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in GRAFANA_UNITS or OWN_UNIT.fullmatch(unit)
    assert panel["description"].endswith(".")
    assert panel["description"] != panel["title"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouping(target["expr"]) | {"method"}


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above


@pytest.mark.parametrize(("name", "expression"), panel_queries(), ids=[name for name, _ in panel_queries()])
def test_queries_name_metrics_that_exist(name: str, expression: str) -> None:
    named = series(expression)
    assert named
    assert named <= set(SERIES)
    known = {label for one in named for label in SERIES[one].labels} | TARGET_LABELS
    assert grouping(expression) | matched(expression) <= known
    assert expression.count('job=~"$job", instance=~"$instance"') == len(re.findall(r"\{[^}]", expression))


def test_every_metric_is_on_it() -> None:
    shown = {SERIES[name] for _, expression in panel_queries() for name in series(expression)}
    assert {metric.name for metric in METRICS.values()} == {metric.name for metric in shown}
