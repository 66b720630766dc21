"""The systemd units: systemd itself takes them, and what they run exists."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guardwire_server import cli
from guardwire_server.config import load_config
from tests.deploy.files import SYSTEMD
from tests.tools import skip_without

UNITS = sorted(path for path in SYSTEMD.iterdir() if path.suffix in (".service", ".timer"))
PROGRAM = "/opt/guardwire/bin/guardwire-server"
MAX_EXPOSURE = 16
"""Of 100, as systemd-analyze weighs what a service could do to its machine; an unconfined one has 96."""


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units beside a program that is there, since systemd looks for it."""
    program = tmp_path / "guardwire-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = []
    for unit in UNITS:
        text = unit.read_text()
        units.append(tmp_path / unit.name)
        units[-1].write_text(text.replace(PROGRAM, str(program)))
    return units


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze") or skip_without("systemd-analyze (Debian package systemd)")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def setting(unit: str, key: str) -> list[str]:
    """All values of a key."""
    return re.findall(rf"^{key}=(.*)$", (SYSTEMD / unit).read_text(), re.MULTILINE)


def test_systemd_finds_nothing_wrong(installed: list[Path]) -> None:
    assert len(installed) == 3
    verified = systemd_analyze("verify", *installed)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def test_systemd_would_find_a_mistake(installed: list[Path]) -> None:
    unit = next(path for path in installed if path.name == "guardwire.service")
    unit.write_text(unit.read_text().replace("TimeoutStopSec=", "TimeoutStopSecs="))
    assert "TimeoutStopSecs" in systemd_analyze("verify", unit).stderr


def test_server_is_confined(installed: list[Path]) -> None:
    unit = next(path for path in installed if path.name == "guardwire.service")
    weighed = systemd_analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", unit)
    assert weighed.returncode == 0, weighed.stdout + weighed.stderr


def test_commands_are_those_of_the_server() -> None:
    parser = cli._parser()
    (command,) = setting("guardwire.service", "ExecStart")
    program, *arguments = command.split()
    assert program == PROGRAM
    options = parser.parse_args(arguments)
    assert str(options.ready_file) == "/run/guardwire/ready"
    assert setting("guardwire-health.service", "ConditionPathExists") == [str(options.ready_file)]
    assert setting("guardwire.service", "RuntimeDirectory") == ["guardwire"]
    health = (SYSTEMD / "guardwire-health.service").read_text()
    (check,) = re.findall(rf"{re.escape(PROGRAM)} (health[^&]*) &&", health)
    assert parser.parse_args(check.split()).service == "liveness"
    assert setting("guardwire-health.service", "Environment") == [f"GUARDWIRE_CONFIG={options.config}"]


def test_configuration_is_one_that_the_server_takes() -> None:
    config = load_config({}, {"GUARDWIRE_CONFIG": str(SYSTEMD / "guardwire.yaml")})
    assert config.health_listen
    (patience,) = setting("guardwire.service", "TimeoutStopSec")
    assert int(patience) >= config.drain_delay_s + config.grace_s + 20
    (size,) = setting("guardwire-health.service", "TimeoutStartSec")
    assert int(size) >= 3 * (3 + 2), "three tries of three seconds, and the pauses between"


def test_settings_in_comments_exist(tmp_path: Path) -> None:
    text = (SYSTEMD / "guardwire.yaml").read_text()
    uncommented = re.sub(r"^# (\w+: \S+)$", r"\1", text, flags=re.MULTILINE)
    assert uncommented.count("\n") == text.count("\n")
    (tmp_path / "config.yaml").write_text(uncommented)
    config = load_config({}, {"GUARDWIRE_CONFIG": str(tmp_path / "config.yaml")})
    assert None not in (config.tls_cert, config.access_file, config.policies_file)
