"""The compose file: valid, confined, and its services agree about who speaks to whom where."""

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from guardwire_server.config import load_config
from tests.deploy.files import COMPOSE, DEPLOY, ROOT, YamlObject, read_yaml
from tests.tools import skip_without

FILE = COMPOSE / "compose.yaml"
MIB = {"m": 1, "g": 1024, "MiB": 1}


def load() -> YamlObject:
    """The file with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text())
    assert "${" not in text
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    return content


SERVICES: dict[str, YamlObject] = load()["services"]
OWN_IMAGE = "guardwire"


def mounts(service: YamlObject) -> dict[str, Path]:
    """The files and directories of the repository that a service mounts, by where."""
    paths = {}
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":")
        if source.startswith("."):
            assert options == ["ro"], volume
            paths[target] = (COMPOSE / source).resolve()
    return paths


def mounted(service: str, path: str) -> Path:
    """The file of the repository that a service finds at a path."""
    for target, source in mounts(SERVICES[service]).items():
        if path == target or path.startswith(f"{target}/"):
            return source / path.removeprefix(target).lstrip("/") if path != target else source
    raise AssertionError(f"{service} mounts nothing at {path}")


def test_schema() -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(vendored.read_text()))
    assert [error.message for error in validator.iter_errors(read_yaml(FILE))] == []
    broken = read_yaml(FILE)
    broken["services"]["guardwire"]["imagine"] = True
    assert not validator.is_valid(broken)


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert re.search(r":v?\d+\.\d+\.\d+(-cpu)?$", service["image"]), "a version, not what is latest today"
    for path in mounts(service).values():
        assert path.exists(), path


def test_services_have_health_checks() -> None:
    # The server's image brings its own, and the collector's has nothing that could check: its comment says so.
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"guardwire", "collector"}
    for name in ("jaeger", "prometheus", "grafana"):
        (url,) = [word for word in SERVICES[name]["healthcheck"]["test"] if word.startswith("http://127.0.0.1:")]
        assert urlsplit(url).port in {"jaeger": {13133}, "prometheus": {9090}, "grafana": {3000}}[name]
    assert read_yaml(COMPOSE / "jaeger.yaml")["extensions"]["healthcheckv2"]["http"]["endpoint"] == "0.0.0.0:13133"


def test_dependencies_can_be_met() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} would wait for {other} for ever"


def test_server_takes_its_configuration() -> None:
    service = SERVICES[OWN_IMAGE]
    assert service["build"]["target"] == "cpu"
    assert (COMPOSE / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    image = {"GUARDWIRE_CONFIG": str(DEPLOY / "docker" / "config.yaml")}
    config = load_config({}, image | service["environment"])
    assert config.num_threads == int(service["deploy"]["resources"]["limits"]["cpus"])
    assert config.drain_delay_s + config.grace_s + 10 <= int(service["stop_grace_period"].removesuffix("s"))
    assert config.listen.rpartition(":")[2] in {port.rpartition(":")[2] for port in service["ports"]}
    assert "cache:/home/guardwire/.cache" in service["volumes"]
    endpoint = urlsplit(config.otlp_endpoint or "")
    receiver = read_yaml(COMPOSE / "collector.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert (endpoint.hostname, endpoint.port) == ("collector", int(receiver.rpartition(":")[2]))


def test_prometheus_scrapes_what_is_there() -> None:
    prometheus = read_yaml(COMPOSE / "prometheus.yaml")
    targets = {
        job["job_name"]: target
        for job in prometheus["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }
    listens = SERVICES[OWN_IMAGE]["environment"]["GUARDWIRE_METRICS_LISTEN"]
    collector = read_yaml(COMPOSE / "collector.yaml")["service"]["telemetry"]["metrics"]["readers"]
    (port,) = [reader["pull"]["exporter"]["prometheus"]["port"] for reader in collector]
    assert targets == {"guardwire": f"guardwire:{listens.rpartition(':')[2]}", "collector": f"collector:{port}"}
    for path in prometheus["rule_files"]:
        assert mounted("prometheus", path).is_file(), path
    (file,) = [word.partition("=")[2] for word in SERVICES["prometheus"]["command"] if "--config.file" in word]
    assert mounted("prometheus", file) == COMPOSE / "prometheus.yaml"


def test_prometheus_itself_takes_the_file(tmp_path: Path) -> None:
    promtool = shutil.which("promtool") or skip_without("promtool (Debian package prometheus)")
    text = (COMPOSE / "prometheus.yaml").read_text()
    for path in read_yaml(COMPOSE / "prometheus.yaml")["rule_files"]:
        text = text.replace(path, str(mounted("prometheus", path)))
    (tmp_path / "prometheus.yaml").write_text(text)
    checked = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ["collector", "jaeger"])
def test_pipelines_are_made_of_what_is_declared(name: str) -> None:
    config = read_yaml(COMPOSE / f"{name}.yaml")
    (file,) = [word.partition("=")[2] for word in SERVICES[name]["command"]]
    assert mounted(name, file) == COMPOSE / f"{name}.yaml"
    service = config["service"]
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in service["pipelines"].values():
        for kind in used:
            used[kind] |= set(pipeline.get(kind, []))
    for kind, names in used.items():
        assert names == set(config.get(kind, {})), kind
    assert set(service["extensions"]) == set(config["extensions"])


def test_collector() -> None:
    config = read_yaml(COMPOSE / "collector.yaml")
    pipelines = config["service"]["pipelines"]
    # All that the server sends: a signal without a pipeline is refused, and the server logs that.
    assert set(pipelines) == {"traces", "logs", "metrics"}
    for pipeline in pipelines.values():
        assert pipeline["receivers"] == ["otlp"]
        assert pipeline["processors"][0] == "memory_limiter"
    limiter = config["processors"]["memory_limiter"]
    assert limiter["check_interval"] == "1s"
    assert 0 < limiter["spike_limit_percentage"] < limiter["limit_percentage"] < 100
    # Prometheus scrapes the server, so nothing else may bring it the same metrics.
    assert pipelines["metrics"]["exporters"] == ["nop"]
    jaeger = read_yaml(COMPOSE / "jaeger.yaml")["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert config["exporters"]["otlp_grpc/jaeger"]["endpoint"] == f"jaeger:{jaeger.rpartition(':')[2]}"


def test_jaeger_keeps_what_it_receives() -> None:
    config = read_yaml(COMPOSE / "jaeger.yaml")
    (backend,) = config["extensions"]["jaeger_storage"]["backends"]
    assert config["exporters"]["jaeger_storage_exporter"]["trace_storage"] == backend
    assert config["extensions"]["jaeger_query"]["storage"]["traces"] == backend


def test_garbage_is_collected_before_the_memory_is_full() -> None:
    for name in ("collector", "jaeger"):
        service = SERVICES[name]
        limit = re.fullmatch(r"(\d+)([mg])", service["deploy"]["resources"]["limits"]["memory"])
        soft = re.fullmatch(r"(\d+)(MiB)", service["environment"]["GOMEMLIMIT"])
        assert limit
        assert soft
        assert int(soft[1]) * MIB[soft[2]] <= 0.81 * int(limit[1]) * MIB[limit[2]]


def test_grafana_is_provisioned() -> None:
    sources = read_yaml(COMPOSE / "grafana" / "datasources.yaml")["datasources"]
    for source in sources:
        url = urlsplit(source["url"])
        assert url.hostname in SERVICES
        assert f"127.0.0.1:{url.port}:{url.port}" in SERVICES[url.hostname]["ports"]
    assert {source["type"] for source in sources} == {"prometheus", "jaeger"}
    assert sum(source.get("isDefault", False) for source in sources) == 1
    (provider,) = read_yaml(COMPOSE / "grafana" / "dashboards.yaml")["providers"]
    dashboards = mounted("grafana", provider["options"]["path"])
    assert (dashboards / "guardwire.json").is_file()
