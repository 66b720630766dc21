"""Kubernetes: every overlay builds, is valid, is confined, and starts a server whose ports, probes and times fit."""

import functools
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from guardwire_server.app import CUT_S, MIN_STALL_TIMEOUT_S
from guardwire_server.model.checkpoint_hub import _SERVED_FILES
from tests.deploy.files import KUBERNETES, YamlObject
from tests.deploy.manifests import BUILDS, COMPONENTS, OVERLAYS, build, build_components, raw_objects

VERSIONS = ("1.31", "1.37")
"""Of Kubernetes: one that is old by now, and the newest that the tool knows."""

CUSTOM_GROUPS = ("gateway.networking.k8s.io", "gateway.envoyproxy.io", "keda.sh", "monitoring.coreos.com")
"""Kinds that no schema of Kubernetes itself has; tests/deploy/test_custom_resources.py looks at them."""

PROBES = {"startupProbe": "readiness", "livenessProbe": "liveness", "readinessProbe": "readiness"}
"""What each asks for."""

FLUSH_S = 10.0
"""What sending the last telemetry may take, and ending the process."""


@pytest.fixture(autouse=True)
def _schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", _schema_contents)


_schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def validate(each: YamlObject) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(each, version, strict=True)


def is_custom(each: YamlObject) -> bool:
    return each["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


@pytest.mark.parametrize("path", BUILDS)
def test_build_is_valid(path: str) -> None:
    objects = build(path).objects
    known = [each for each in objects if not is_custom(each)]
    assert len(known) >= 7
    for each in known:
        validate(each)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


def test_files_are_valid_as_they_are() -> None:
    objects = raw_objects()
    assert {path.parent.name for path, _ in objects} >= {"base", "gateway", "models", "observability"}
    for _, each in objects:
        if not is_custom(each):
            validate(each)


def test_validation_finds_mistakes() -> None:
    (_, service) = next((path, each) for path, each in raw_objects() if each["kind"] == "Service")
    service["spec"]["imagined"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(service)


def test_every_component_is_in_an_overlay_or_says_how_to_add_it() -> None:
    used = set()
    for name in OVERLAYS:
        kustomization = yaml.safe_load((KUBERNETES / "overlays" / name / "kustomization.yaml").read_text())
        used |= {Path(path).name for path in kustomization["components"]}
    assert set(COMPONENTS) - used == {"mtls"}
    assert "components/mtls" in (KUBERNETES / "overlays" / "tls" / "kustomization.yaml").read_text()


def test_mtls_on_top_of_tls(tmp_path: Path) -> None:
    made = build_components(tmp_path, "cpu", "tls", "mtls")
    for each in made.objects:
        validate(each)
    config = made.config(tmp_path)
    assert config.tls_client_ca
    mounts = {mount["mountPath"]: mount["name"] for mount in made.server["volumeMounts"]}
    (volume,) = [
        each for each in made.pod["spec"]["volumes"] if each["name"] == mounts[str(config.tls_client_ca.parent)]
    ]
    assert volume["configMap"]["name"] == "guardwire-client-ca"


@pytest.mark.parametrize("path", BUILDS)
def test_pods_are_confined(path: str) -> None:
    made = build(path)
    pods = [made.pod["spec"], *(job["spec"]["template"]["spec"] for job in made.of("Job"))]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            name, _, tag = container["image"].partition(":")
            assert name == "guardwire"
            assert tag.endswith("-cuda" if path in ("overlays/gpu", "overlays/production") else "-cpu")


@pytest.mark.parametrize("path", BUILDS)
def test_server_starts_with_its_configuration(path: str, tmp_path: Path) -> None:
    made = build(path)
    config = made.config(tmp_path)
    assert config.num_threads == int(made.server["resources"]["limits"]["cpu"])
    is_on_gpu = "nvidia.com/gpu" in made.server["resources"]["limits"]
    assert config.device == ("cuda" if is_on_gpu else "cpu" if path != "base" else "auto")
    has_tls = path in ("overlays/tls", "overlays/production")
    assert (config.tls_cert is not None) == has_tls
    assert config.allow_insecure != has_tls
    mounts = [mount["mountPath"] for mount in made.server["volumeMounts"]]
    for file in (config.tls_cert, config.tls_key, config.access_file):
        assert file is None or str(file.parent) in mounts
    if path != "base":
        assert config.stream_model == "/models/Qwen/Qwen3Guard-Stream-0.6B"
        assert config.gen_model == "/models/Qwen/Qwen3Guard-Gen-0.6B"


@pytest.mark.parametrize("path", BUILDS)
def test_ports_and_probes_are_the_servers(path: str, tmp_path: Path) -> None:
    made = build(path)
    config = made.config(tmp_path)
    listening = {"grpc": config.listen, "health": config.health_listen, "metrics": config.metrics_listen}
    ports = {name: int(address.rpartition(":")[2]) for name, address in listening.items() if address}
    assert {port["name"]: port["containerPort"] for port in made.server["ports"]} == ports
    for name, service in {
        "startupProbe": "readiness",
        "livenessProbe": "liveness",
        "readinessProbe": "readiness",
    }.items():
        assert made.server[name]["grpc"] == {"port": ports["health"], "service": service}
    for each in made.of("Service"):
        (port,) = each["spec"]["ports"]
        assert (port["port"], port["targetPort"]) == (ports["grpc"], "grpc")
        # What a gateway takes for HTTP/2 without TLS must not have any.
        assert ("appProtocol" in port) == (config.tls_cert is None and each["metadata"]["name"] == "guardwire")
    headless = made.one("Service", "guardwire-headless")
    assert headless["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize("path", BUILDS)
def test_pod_has_the_time_that_the_server_takes(path: str, tmp_path: Path) -> None:
    made = build(path)
    config = made.config(tmp_path)
    stopping_s = config.drain_delay_s + config.grace_s + CUT_S + MIN_STALL_TIMEOUT_S + FLUSH_S
    assert made.pod["spec"]["terminationGracePeriodSeconds"] >= stopping_s
    # Endpoints must have gone before new calls are refused.
    assert config.drain_delay_s >= 2 * made.server["readinessProbe"]["periodSeconds"]
    startup = made.server["startupProbe"]
    loading_s = startup["periodSeconds"] * startup["failureThreshold"]
    assert loading_s >= 600
    assert made.one("Deployment")["spec"]["progressDeadlineSeconds"] > loading_s
    assert "lifecycle" not in made.server


@pytest.mark.parametrize("path", BUILDS)
def test_what_hangs_is_restarted_at_once(path: str) -> None:
    """Its streams have nothing to wait for, so it does not get the time of a drain."""
    made = build(path)
    liveness = made.server["livenessProbe"]
    noticing_s = liveness["periodSeconds"] * liveness["failureThreshold"]
    assert noticing_s + liveness["terminationGracePeriodSeconds"] <= 30
    assert liveness["terminationGracePeriodSeconds"] < made.pod["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("path", BUILDS)
def test_selectors_select_the_server_and_nothing_else(path: str) -> None:
    made = build(path)
    labels = made.pod["metadata"]["labels"]
    selectors = [made.one("Deployment")["spec"]["selector"]["matchLabels"]]
    selectors += [each["spec"]["selector"] for each in made.of("Service")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in made.of("PodDisruptionBudget")]
    selectors += [each["spec"]["selector"]["matchLabels"] for each in made.of("PodMonitor")]
    selectors += [
        each["spec"]["podSelector"]["matchLabels"]
        for each in made.of("NetworkPolicy")
        if each["metadata"]["name"] != "guardwire-models"
    ]
    selectors += [each["labelSelector"]["matchLabels"] for each in made.pod["spec"]["topologySpreadConstraints"]]
    assert len(selectors) >= 7
    for selector in selectors:
        assert selector.items() <= labels.items()
        for job in made.of("Job"):
            assert not selector.items() <= job["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("path", BUILDS)
def test_volumes_are_there(path: str) -> None:
    made = build(path)
    for pod in (made.pod["spec"], *(job["spec"]["template"]["spec"] for job in made.of("Job"))):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        containers = (*pod["containers"], *pod.get("initContainers", ()))
        used = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert used == set(volumes)
        for volume in volumes.values():
            if "configMap" in volume:
                assert volume["configMap"]["name"] in {each["metadata"]["name"] for each in made.of("ConfigMap")}
            if "persistentVolumeClaim" in volume:
                assert made.one("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    cache = next(mount for mount in made.server["volumeMounts"] if mount["name"] == "cache")
    assert (cache["mountPath"], cache.get("readOnly", False)) == ("/home/guardwire/.cache", False)


def test_models_are_downloaded_where_they_are_looked_for() -> None:
    made = build("overlays/cpu")
    (download,) = made.one("Job", "guardwire-models")["spec"]["template"]["spec"]["containers"]
    (waiting,) = made.pod["spec"]["initContainers"]
    script = download["command"][-1]
    assert 'touch "/models/$model/.complete"' in script
    assert '-e "/models/$model/.complete"' in waiting["command"][-1]
    for container in (download, waiting):
        names = {each["name"] for each in container["env"]}
        assert names >= {"STREAM_MODEL", "GEN_MODEL"}
    words = script.replace("'", "").split()
    assert {words[index + 1] for index, word in enumerate(words) if word == "--include"} == set(_SERVED_FILES)


def test_one_server_goes_at_a_time() -> None:
    for path in BUILDS:
        made = build(path)
        assert made.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
        rolling = made.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxSurge"] + rolling["maxUnavailable"] == 1
