"""The objects that operators and gateways define: by hand, since Kubernetes has no schemas of them."""

import re
from pathlib import Path

import pytest

from deploy.kubernetes.make_prometheus_rule import OBJECT_FILE, RULES_FILE, render
from guardwire.v1 import moderation_pb2
from guardwire_server.config import ServerConfig
from tests.deploy.files import YamlObject, read_yaml
from tests.deploy.manifests import Build, build
from tests.observability import promql
from tests.observability.contract import SERIES

API_VERSIONS = {
    "Gateway": "gateway.networking.k8s.io/v1",
    "GRPCRoute": "gateway.networking.k8s.io/v1",
    "BackendTrafficPolicy": "gateway.envoyproxy.io/v1alpha1",
    "ClientTrafficPolicy": "gateway.envoyproxy.io/v1alpha1",
    "ScaledObject": "keda.sh/v1alpha1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}

KEYS = {
    "GRPCRoute": {"parentRefs", "hostnames", "rules"},
    "BackendTrafficPolicy": {"targetRefs", "timeout", "loadBalancer", "circuitBreaker"},
    "ClientTrafficPolicy": {"targetRefs", "timeout", "http2"},
    "ScaledObject": {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "advanced",
        "triggers",
    },
    "PodMonitor": {"jobLabel", "selector", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}
"""Of their `spec`: a misspelt key would be dropped in silence."""


@pytest.fixture
def gateway() -> Build:
    return build("overlays/gateway")


@pytest.fixture
def production() -> Build:
    return build("overlays/production")


def spec(made: Build, kind: str) -> YamlObject:
    each = made.one(kind)
    assert each["apiVersion"] == API_VERSIONS[kind]
    content = each["spec"]
    assert isinstance(content, dict)
    assert set(content) == KEYS.get(kind, set(content))
    return content


def test_route_leads_to_the_service_and_nothing_else(gateway: Build) -> None:
    route = spec(gateway, "GRPCRoute")
    (rule,) = route["rules"]
    assert set(rule) == {"matches", "backendRefs"}, "GRPCRoute has no timeouts"
    (match,) = rule["matches"]
    assert match == {"method": {"service": moderation_pb2.DESCRIPTOR.services_by_name["ModerationService"].full_name}}
    (backend,) = rule["backendRefs"]
    (port,) = gateway.one("Service", backend["name"])["spec"]["ports"]
    assert backend["port"] == port["port"]
    (parent,) = route["parentRefs"]
    listeners = spec(gateway, "Gateway")["listeners"]
    (listener,) = [each for each in listeners if each["name"] == parent["sectionName"]]
    assert parent["name"] == gateway.one("Gateway")["metadata"]["name"]
    assert route["hostnames"] == [listener["hostname"]]
    assert listener["tls"]["mode"] == "Terminate"


def test_gateway_cuts_no_stream(gateway: Build) -> None:
    defaults = ServerConfig()
    backend = spec(gateway, "BackendTrafficPolicy")
    assert backend["timeout"] == {"http": {"requestTimeout": "0s", "maxStreamDuration": "0s"}}
    assert backend["loadBalancer"] == {"type": "LeastRequest"}
    assert backend["circuitBreaker"]["maxParallelRequests"] >= 10 * defaults.max_sessions
    (target,) = backend["targetRefs"]
    assert (target["kind"], target["name"]) == ("GRPCRoute", gateway.one("GRPCRoute")["metadata"]["name"])
    client = spec(gateway, "ClientTrafficPolicy")
    assert set(client["timeout"]["http"]) == {"streamIdleTimeout"}
    assert float(client["timeout"]["http"]["streamIdleTimeout"].removesuffix("s")) > defaults.idle_timeout_s
    assert client["http2"]["maxConcurrentStreams"] >= defaults.max_sessions
    (target,) = client["targetRefs"]
    assert (target["kind"], target["name"]) == ("Gateway", gateway.one("Gateway")["metadata"]["name"])


def test_autoscaler_asks_for_metrics_that_exist(production: Build) -> None:
    scaled = spec(production, "ScaledObject")
    assert scaled["scaleTargetRef"]["name"] == production.one("Deployment")["metadata"]["name"]
    assert "replicas" not in production.one("Deployment")["spec"], "two would set the number"
    assert 2 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    asked = set()
    for trigger in scaled["triggers"]:
        assert trigger["type"] == "prometheus"
        assert trigger["metricType"] in ("Value", "AverageValue")
        assert set(trigger["metadata"]) <= {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
        assert float(trigger["metadata"]["threshold"]) > 0
        series = promql.series(trigger["metadata"]["query"])
        assert series <= set(SERIES)
        asked |= series
    assert asked == {"guardwire_step_queue_wait_seconds_bucket", "guardwire_session_active"}
    sessions = next(each for each in scaled["triggers"] if "session" in each["metadata"]["query"])
    assert float(sessions["metadata"]["threshold"]) < ServerConfig().max_sessions


def test_autoscaler_goes_down_more_slowly_than_a_server_drains(production: Build) -> None:
    behavior = spec(production, "ScaledObject")["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    (policy,) = behavior["scaleDown"]["policies"]
    assert policy["periodSeconds"] > production.pod["spec"]["terminationGracePeriodSeconds"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > behavior["scaleUp"]["stabilizationWindowSeconds"]


def test_monitor_scrapes_the_metrics_port(production: Build) -> None:
    monitor = spec(production, "PodMonitor")
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in production.server["ports"]}
    # The queries of the autoscaler choose by this job.
    job = production.pod["metadata"]["labels"][monitor["jobLabel"]]
    queries = " ".join(each["metadata"]["query"] for each in spec(production, "ScaledObject")["triggers"])
    assert set(re.findall(r'job="(\w+)"', queries)) == {job}


def test_policies_let_through_what_components_need(production: Build) -> None:
    policy = production.one("NetworkPolicy", "guardwire-observability")["spec"]
    allowed = {port["port"] for rule in (*policy["ingress"], *policy["egress"]) for port in rule["ports"]}
    endpoint = production.environment["GUARDWIRE_OTLP_ENDPOINT"]
    assert allowed == {"metrics", int(endpoint.rpartition(":")[2])}
    assert {port["name"] for port in production.server["ports"]} >= {"metrics"}


def test_rules_are_those_of_the_rule_file(production: Build) -> None:
    assert OBJECT_FILE.read_text() == render(), "stale: run `python -m deploy.kubernetes.make_prometheus_rule`"
    assert spec(production, "PrometheusRule")["groups"] == read_yaml(RULES_FILE)["groups"]


def test_server_that_drains_raises_no_alert(production: Build, tmp_path: Path) -> None:
    rules = [rule for group in spec(production, "PrometheusRule")["groups"] for rule in group["rules"]]
    (alert,) = [rule for rule in rules if rule.get("alert") == "GuardwireNotServing"]
    patience = re.fullmatch(r"(\d+)m", alert["for"])
    assert patience
    config = production.config(tmp_path)
    assert config.drain_delay_s + config.grace_s + 15 < 60 * int(patience[1])
