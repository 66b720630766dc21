"""What kustomize makes of an overlay, and what the server in it is told."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from guardwire_server.config import ServerConfig, load_config
from tests.deploy.files import KUBERNETES, YamlObject
from tests.tools import skip_without

OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (KUBERNETES / "components").iterdir())
BUILDS = ("base", *(f"overlays/{name}" for name in OVERLAYS))


@dataclass(frozen=True)
class Build:
    """The objects of a build."""

    objects: tuple[YamlObject, ...]

    def of(self, kind: str) -> list[YamlObject]:
        """All objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str = "guardwire") -> YamlObject:
        """The object of that kind and name; generated names may have a hash behind."""
        (found,) = [
            each for each in self.of(kind) if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", each["metadata"]["name"])
        ]
        return found

    @property
    def pod(self) -> YamlObject:
        """The pod template of the server's Deployment."""
        template: YamlObject = self.one("Deployment")["spec"]["template"]
        return template

    @property
    def server(self) -> YamlObject:
        """The server's container."""
        (container,) = self.pod["spec"]["containers"]
        assert isinstance(container, dict)
        return container

    @property
    def environment(self) -> dict[str, str]:
        """The variables that Kubernetes gives the server."""
        variables: dict[str, str] = {}
        for each in self.server["env"]:
            value = str(each["value"]) if "value" in each else self._value_from(each["valueFrom"])
            variables[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], value)
        return variables

    def config(self, directory: Path) -> ServerConfig:
        """The settings that the server starts with; `directory` is for its configuration file."""
        file = directory / "config.yaml"
        file.write_text(self.one("ConfigMap", "guardwire-config")["data"]["config.yaml"])
        return load_config({}, {"GUARDWIRE_CONFIG": str(file)} | self.environment)

    def _value_from(self, source: Mapping[str, YamlObject]) -> str:
        ((kind, reference),) = source.items()
        if kind == "resourceFieldRef":
            _, _, resource = reference["resource"].partition(".")
            return str(self.server["resources"]["limits"][resource])
        if kind == "configMapKeyRef":
            (found,) = [each for each in self.of("ConfigMap") if each["metadata"]["name"] == reference["name"]]
            return str(found["data"][reference["key"]])
        assert kind == "fieldRef", kind
        return f"<{reference['fieldPath']}>"


@functools.cache
def build(path: str) -> Build:
    """Builds what lies below deploy/kubernetes; skips the test where there is no kubectl."""
    return _kustomize(KUBERNETES / path)


def build_components(directory: Path, *names: str) -> Build:
    """Builds the base with components of one's own choice, from a directory of one's own."""
    deploy = Path(os.path.relpath(KUBERNETES, directory))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(deploy / "base")],
        "components": [str(deploy / "components" / name) for name in names],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return _kustomize(directory)


def _kustomize(directory: Path) -> Build:
    kubectl = shutil.which("kubectl") or skip_without("kubectl")
    made = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert not made.stderr, made.stderr
    return Build(tuple(yaml.safe_load_all(made.stdout)))


def raw_objects() -> list[tuple[Path, YamlObject]]:
    """The objects that the files hold as they are; patches and kustomizations are none."""
    files = sorted((KUBERNETES / "base").glob("*.yaml")) + sorted((KUBERNETES / "components").glob("*/*.yaml"))
    patches = {path for path in files if path.name == "deployment.yaml" and path.parent.name != "base"}
    others = {path for path in files if path.name in ("kustomization.yaml", "config.yaml")}
    return [
        (path, each) for path in files if path not in patches | others for each in yaml.safe_load_all(path.read_text())
    ]
