"""The files below deploy/, as the tests read them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
HAPROXY = DEPLOY / "haproxy" / "haproxy.cfg"
SYSTEMD = DEPLOY / "systemd"

YamlObject = dict[str, Any]


def read_yaml(path: Path) -> YamlObject:
    """A file with one mapping."""
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content
