"""New keys: strong, printed once, and what is printed below them works."""

import base64
import hashlib
import io
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from guardwire_server.access.credentials import PresentedCredentials
from guardwire_server.access.load import load_access
from guardwire_server.access.new_key import print_new_key
from guardwire_server.cli import main
from guardwire_server.core.errors import StartupError

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def new_key(tenant: str = "acme", key_id: str = "acme-1") -> tuple[str, str]:
    """A key, and the entry for the access file."""
    output = io.StringIO()
    print_new_key(tenant, key_id, output, NOW)
    (key,) = re.findall(r"^gw_\S+$", output.getvalue(), re.MULTILINE)
    entry = output.getvalue().partition("access file:\n\n")[2]
    assert output.getvalue().count(key) == 1
    return key, entry


def test_key_is_random_and_long() -> None:
    keys = {new_key()[0] for _ in range(50)}
    assert len(keys) == 50
    for key in keys:
        secret = key.removeprefix("gw_")
        assert len(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4))) * 8 == 256


def test_entry_lets_the_key_in(tmp_path: Path) -> None:
    key, entry = new_key()
    path = tmp_path / "access.yaml"
    path.write_text(f"version: 1\ntenants:\n  acme:\nkeys:\n{entry}")
    rules = load_access(path).value
    assert rules.identify(PresentedCredentials(key), NOW).name == "acme"
    assert hashlib.sha256(key.encode()).hexdigest() in entry
    assert "made on 2026-11-22" in entry


def test_keys_and_entries_hold_the_names(caplog: pytest.LogCaptureFixture) -> None:
    _, entry = new_key("007", "no")
    assert 'id: "no"' in entry
    assert 'tenant: "007"' in entry
    assert not caplog.records


def test_command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    assert main(["new-key", "--tenant", "acme", "--id", "acme-1"]) == 0
    printed = capsys.readouterr()
    (key,) = re.findall(r"^gw_\S+$", printed.out, re.MULTILINE)
    assert hashlib.sha256(key.encode()).hexdigest() in printed.out
    assert key not in printed.err + caplog.text
    assert main(["new-key", "--tenant", "a b", "--id", "acme-1"]) == 1
    assert "tenant: must be up to 63 letters" in capsys.readouterr().err


@pytest.mark.parametrize(("tenant", "key_id", "told"), [("a b", "x", "tenant"), ("a", "", "id"), ("a", 'x"', "id")])
def test_names_that_could_not_stand_in_the_file(tenant: str, key_id: str, told: str) -> None:
    output = io.StringIO()
    with pytest.raises(StartupError, match=f"^{told}: must be"):
        print_new_key(tenant, key_id, output)
    assert not output.getvalue()
