"""Writes the alert rules for Kubernetes: `python -m deploy.kubernetes.make_prometheus_rule`, from the root.

Prometheus' operator takes rules as an object of its own with the very content of Prometheus' rule file, which kustomize
cannot put together. So the object is written from the file, and a test sees to it that it was.
"""

from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[1]
RULES_FILE = DEPLOY / "observability" / "prometheus" / "guardwire.rules.yaml"
OBJECT_FILE = DEPLOY / "kubernetes" / "components" / "observability" / "prometheus-rule.yaml"

HEADER = """\
# Written by deploy/kubernetes/make_prometheus_rule.py from deploy/observability/prometheus/guardwire.rules.yaml, which
# says why the rules are as they are. Change them there.
"""


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as blocks."""


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_string)


def render() -> str:
    """The object as YAML."""
    labels = {"app.kubernetes.io/name": "guardwire", "app.kubernetes.io/component": "server"}
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "guardwire", "labels": labels},
        "spec": {"groups": yaml.safe_load(RULES_FILE.read_text())["groups"]},
    }
    return HEADER + yaml.dump(rule, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


if __name__ == "__main__":
    OBJECT_FILE.write_text(render())
