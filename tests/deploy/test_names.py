"""Every setting, variable, flag and metric that a file below deploy/ names exists."""

import argparse
import re
from pathlib import Path

import pytest

from guardwire_server import cli
from guardwire_server.config import ServerConfig
from tests.deploy.files import DEPLOY, KUBERNETES
from tests.observability.contract import SERIES

FILES = sorted(
    path
    for path in DEPLOY.rglob("*")
    if path.is_file() and path.suffix in ("", ".cfg", ".conf", ".md", ".service", ".timer", ".yaml")
)
FOREIGN_VARIABLES = {"GUARDWIRE_CONFIG", "GUARDWIRE_TARGET"}
"""That are no settings: `--config`, and where the client connects to."""

FOREIGN_KEYS = {
    # of Envoy, NGINX, the protocol, and load balancing
    "stream_idle_timeout",
    "max_requests",
    "grpc_read_timeout",
    "grpc_send_timeout",
    "client_body_timeout",
    "client_max_body_size",
    "http2_max_concurrent_streams",
    "round_robin",
}


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the server's commands."""
    (commands,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands.choices)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_variables(path: Path) -> None:
    settings = {f"GUARDWIRE_{key.upper()}" for key in ServerConfig.model_fields} | FOREIGN_VARIABLES
    named = re.findall(r"\bGUARDWIRE_[A-Z_]*[A-Z]\b", path.read_text())
    assert set(named) <= settings


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_commands_and_flags(path: Path) -> None:
    """What follows the program's name and is no command of it is prose, and has no flags."""
    parsers = subcommands()
    for command, rest in re.findall(r"guardwire-server ([a-z][a-z-]*)((?: +[^\s`|&;]+)*)", path.read_text()):
        if command not in parsers:
            assert not re.search(r"--", rest), f"guardwire-server {command}"
            continue
        options = {option for action in parsers[command]._actions for option in action.option_strings}
        assert set(re.findall(r"(?<!\S)(--[a-z-]+)", rest)) <= options, f"guardwire-server {command}{rest}"


def test_settings_that_the_guide_names() -> None:
    named = set(re.findall(r"`([a-z][a-z0-9]*(?:_[a-z0-9]+)+)`", (DEPLOY / "README.md").read_text()))
    assert len(named) > 10
    assert named - FOREIGN_KEYS <= set(ServerConfig.model_fields)


def test_metrics() -> None:
    for path in sorted((KUBERNETES / "components" / "autoscaling").glob("*.yaml")):
        named = set(re.findall(r"\b(?:guardwire|rpc)_[a-z_]+\b", path.read_text()))
        assert named <= set(SERIES)


@pytest.mark.parametrize("path", [DEPLOY / "README.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert (path.parent / file).exists(), target
        if anchor and not file:
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
