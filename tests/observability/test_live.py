"""A real Prometheus scrapes a running server, evaluates the rules, and answers every query of the dashboard."""

import asyncio
import contextlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guardwire_server.rpc import health
from tests.observability.contract import METRICS, SERIES
from tests.observability.deployed import (
    alerts,
    dashboard,
    panel_queries,
    recordings,
    rules,
    runbook_blocks,
    scaling_queries,
    seldom_evaluated_rules,
)
from tests.observability.load import one_round
from tests.observability.prometheus_server import JOB, WAIT_S, Prometheus, Series, prometheus_program
from tests.observability.promql import grouping, series
from tests.observability.secured_server import SecuredServer, secured_server

NUM_ROUNDS = 2
"""Of load, each seen by a scrape: a rate needs two samples."""

NUM_TRIES = 3

VARIABLES = {"$__rate_interval": "1m", "$__range": "5m", "$job": ".+", "$instance": ".+"}
"""What Grafana would put in place of the dashboard's variables."""

TARGET_LABELS = {"__name__", "job", "instance", "le"}

WELL = {
    "GuardwireAbsent",
    "GuardwireTargetDown",
    "GuardwireNoneServing",
    "GuardwireNotServing",
    "GuardwireDeviceStalled",
    "GuardwireRestarts",
    "GuardwireNoTraffic",
    "GuardwireSessionsNearLimit",
    "GuardwireCertificateExpiresSoon",
    "GuardwireCertificateExpires",
}
"""Alerts that are not even pending on a server that serves, whatever its callers do."""

Answer = list[tuple[Series, float]]


@dataclass(frozen=True)
class Observed:
    """What Prometheus said while the server ran."""

    panels: dict[str, Answer | str]
    rule_queries: dict[str, Answer | str]
    runbook: dict[str, Answer | str]
    scaling: dict[str, Answer | str]
    rules: list[dict[str, Any]]
    series: list[Series]
    kinds: dict[str, str]
    units: dict[str, str]
    jobs: list[str]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    program, directory = prometheus_program(), tmp_path_factory.mktemp("observability")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "PROBE_INTERVAL_S", 3600.0)  # a probe would take the fault that is meant for a caller
        return asyncio.run(_observe(program, directory))


async def _observe(program: str, directory: Path) -> Observed:
    async with (
        secured_server(directory) as (server, metrics_address),
        Prometheus(program, directory / "prometheus", metrics_address) as prometheus,
    ):
        for _ in range(NUM_ROUNDS):
            await one_round(server)
            await prometheus.scraped()
        await _change_files(server, prometheus)
        return await _ask(prometheus)


async def _change_files(server: SecuredServer, prometheus: Prometheus) -> None:
    """One change that is taken and one that is not, until Prometheus knows."""
    version = (await server.info()).policies_version
    server.files.write_policies("flag")
    while (await server.info()).policies_version == version:
        pass
    server.files.write_policies("explode")
    server.files.renew_certificate()
    await prometheus.until('guardwire_config_refused{guardwire_setting="policies_file"} == 1')
    await prometheus.until('guardwire_config_reloads_total{guardwire_setting="tls_cert", guardwire_outcome="taken"}')
    await prometheus.until('guardwire_config_refused{guardwire_setting="tls_cert"} == 0')


async def _ask(prometheus: Prometheus) -> Observed:
    metadata = await prometheus.ask("targets/metadata", match_target=f'{{job="{JOB}"}}')
    return Observed(
        panels={name: await _data(prometheus, expression) for name, expression in panel_queries()},
        rule_queries={rule.get("alert") or rule["record"]: await _answer(prometheus, rule["expr"]) for rule in rules()},
        runbook={expression: await _answer(prometheus, expression) for expression in runbook_blocks("promql")},
        scaling={expression: await _data(prometheus, expression) for expression in scaling_queries()},
        rules=await _rules(prometheus),
        series=await prometheus.ask("series", **{"match[]": f'{{job="{JOB}"}}'}),
        kinds={_family(item["metric"]): item["type"] for item in metadata},
        units={_family(item["metric"]): item["unit"] for item in metadata},
        jobs=await prometheus.ask("label/job/values", **{"match[]": _variable_metric("job")}),
    )


async def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    """The state of all rules, once no alert is active that should not be.

    Those may be for a moment, when a busy machine has made a scrape too late.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while any(rule["name"] in WELL and rule["state"] != "inactive" for rule in await prometheus.rules()):
                pass
    return await prometheus.rules()


async def _data(prometheus: Prometheus, expression: str) -> Answer | str:
    """As `_answer`; asks again where there is no data, since on a busy machine a scrape may have come too late."""
    for _ in range(NUM_TRIES):
        answer = await _answer(prometheus, expression)
        if isinstance(answer, str) or _has_data(answer):
            break
        await prometheus.scraped()
    return answer


async def _answer(prometheus: Prometheus, expression: str) -> Answer | str:
    """The answer to a query, or what is wrong with it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    try:
        return await prometheus.query(expression)
    except AssertionError as error:
        return str(error)


def _has_data(answer: Answer | str) -> bool:
    """Whether there is anything to draw."""
    return not isinstance(answer, str) and any(math.isfinite(value) for _, value in answer)


def _without_data(answers: dict[str, Answer | str]) -> dict[str, Answer | str]:
    return {name: answer for name, answer in answers.items() if not _has_data(answer)}


def _family(name: str) -> str:
    """In the text format counters are described with `_total`, in OpenMetrics without."""
    return name.removesuffix("_total")


def _variable_metric(name: str) -> str:
    """The metric whose labels a variable of the dashboard lists."""
    (variable,) = (one for one in dashboard()["templating"]["list"] if one["name"] == name)
    (metric,) = re.findall(r"^label_values\((\w+), \w+\)$", variable["definition"])
    return str(metric)


def test_every_panel_has_data(observed: Observed) -> None:
    assert _without_data(observed.panels) == {}


def test_every_panel_tells_its_series_apart(observed: Observed) -> None:
    for name, expression in panel_queries():
        answer = observed.panels[name]
        assert isinstance(answer, list)
        labels = grouping(expression) - {"le"}
        assert all(labels <= {*found} for found, _ in answer if "guardwire_tenant" not in labels), name


def test_every_rule_is_answered(observed: Observed) -> None:
    assert {name: answer for name, answer in observed.rule_queries.items() if isinstance(answer, str)} == {}


def test_every_query_of_the_runbook_is_answered(observed: Observed) -> None:
    assert {expression: answer for expression, answer in observed.runbook.items() if isinstance(answer, str)} == {}


def test_every_query_of_autoscaling_has_data(observed: Observed) -> None:
    assert _without_data(observed.scaling) == {}


def test_prometheus_evaluates_every_rule(observed: Observed) -> None:
    assert len(observed.rules) == len(rules())
    assert {rule["name"]: rule.get("lastError") for rule in observed.rules if rule["health"] == "err"} == {}
    unknown = {rule["name"] for rule in observed.rules if rule["health"] == "unknown"}
    assert unknown <= seldom_evaluated_rules()


def test_alerts_tell_what_is_wrong_and_nothing_else(observed: Observed) -> None:
    states = {rule["name"]: rule["state"] for rule in observed.rules if rule["type"] == "alerting"}
    assert set(states) == set(alerts())
    assert {name for name in WELL if states[name] != "inactive"} == set()
    assert states["GuardwireReloadRefused"] == "pending"  # it waits for a minute
    assert states["GuardwireStreamsFail"] == "pending"  # one in eight, and it waits for five minutes
    (refused,) = (rule["alerts"] for rule in observed.rules if rule["name"] == "GuardwireReloadRefused")
    assert [alert["labels"]["guardwire_setting"] for alert in refused] == ["policies_file"]
    assert refused[0]["annotations"]["description"].startswith("What policies_file of ")


def test_the_metrics_are_those_of_the_contract(observed: Observed) -> None:
    found = {one["__name__"] for one in observed.series if one["__name__"].startswith(("guardwire_", "rpc_"))}
    assert found == set(SERIES)
    kinds = {metric.name: observed.kinds.get(metric.name) for metric in METRICS.values()}
    assert kinds == {metric.name: metric.kind for metric in METRICS.values()}
    for metric in METRICS.values():
        assert observed.units[metric.name] in ("", metric.name.rpartition("_")[2])


def test_the_labels_are_those_of_the_contract(observed: Observed) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for one in observed.series:
        if one["__name__"] in SERIES:
            found[SERIES[one["__name__"]].name] |= set(one) - TARGET_LABELS
    assert found == {metric.name: set(metric.labels) for metric in METRICS.values()}


def test_whatever_is_queried_exists(observed: Observed) -> None:
    """Whether or not it is in the contract: this asks Prometheus alone."""
    existing = {one["__name__"] for one in observed.series} | recordings()
    queries = [expression for _, expression in panel_queries()] + [rule["expr"] for rule in rules()]
    for expression in [*queries, *runbook_blocks("promql"), *scaling_queries()]:
        assert series(expression) <= existing


def test_thresholds_are_bounds_of_buckets_that_can_be_exceeded(observed: Observed) -> None:
    bounds: dict[str, set[float]] = defaultdict(set)
    for one in observed.series:
        if "le" in one:
            bounds[one["__name__"]].add(float(one["le"]))
    num_quantiles = 0
    for alert in alerts().values():
        if "histogram_quantile(" in alert["expr"]:
            num_quantiles += 1
            (histogram,) = series(alert["expr"])
            (threshold,) = re.findall(r">\s*([\d.]+)\s*$", alert["expr"])
            finite = {bound for bound in bounds[histogram] if math.isfinite(bound)}
            assert float(threshold) in finite
            assert float(threshold) < max(finite)
    assert num_quantiles == 3


def test_the_dashboard_finds_its_servers(observed: Observed) -> None:
    assert observed.jobs == [JOB]
