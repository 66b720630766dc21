"""deploy/ACCESS.md against the code: its files load, and its names are the code's."""

import re
from pathlib import Path

import pytest

from guardwire_server.access.load import load_access
from guardwire_server.access.rules import TenantLimits
from tests.access.issuer import Issuer

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "deploy" / "ACCESS.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_load(tmp_path: Path, example: str, caplog: pytest.LogCaptureFixture) -> None:
    Issuer("RS256").write_key_set(tmp_path / "issuer-keys.json")
    path = tmp_path / "access.yaml"
    path.write_text(example)
    assert "chat" in load_access(path).value.tenants
    assert not caplog.records
    assert len(EXAMPLES) == 2


def test_all_limits_are_told() -> None:
    section = GUIDE.partition("## Limits")[2].partition("##")[0]
    told = re.findall(
        r"`(\w+)`", "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    )
    assert sorted(told) == sorted(TenantLimits.__slots__)


def test_all_reasons_are_told() -> None:
    section = GUIDE.partition("## What callers see")[2].partition("##")[0]
    rows = "".join(line for line in section.splitlines() if line.startswith("|"))
    told = set(re.findall(r"`([A-Z]+_[A-Z]+)`", rows))
    sources = (ROOT / "server" / "guardwire_server" / "access").glob("*.py")
    raised = re.findall(
        r"(?:Unauthenticated|PermissionDenied|Overloaded|InvalidField)\(\s*\"([A-Z_]+)\"",
        "".join(source.read_text() for source in sources),
    )
    assert told == set(raised)
