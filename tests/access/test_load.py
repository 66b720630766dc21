"""The access file: what it may say, and that every mistake is told with its line and key."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from guardwire_server.access.load import load_access
from guardwire_server.access.rules import TenantLimits
from guardwire_server.core.errors import StartupError
from guardwire_server.reloading import ReloadedFile
from tests.access.access_file import ACME_KEY, AccessFile, digest, key_entry
from tests.access.issuer import Issuer

DIGEST, OTHER_DIGEST = digest("one"), digest("other")
GOOD = f"""\
version: 1
tenants:
  acme:
    max_streams: 100
    max_classify_calls: 20
    tokens_per_s: 5000
    burst_tokens: 20000
    max_message_bytes: 4096
    max_tokens_per_message: 64
  beta:
keys:
  - id: acme-2026
    tenant: acme
    sha256: "{DIGEST}"
    expires: 2126-12-31T23:59:59+02:00
certificates:
  - tenant: beta
    dns: gateway.beta.test
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.yaml"


def mistakes(path: Path, content: str) -> list[str]:
    """What is wrong with a file, without its name."""
    path.write_text(content)
    with pytest.raises(StartupError) as raised:
        load_access(path)
    lines = str(raised.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def test_good_file(path: Path) -> None:
    path.write_text(GOOD)
    loaded = load_access(path)
    assert loaded.paths == (path,)
    rules = loaded.value
    assert rules.tenants["acme"].limits == TenantLimits(100, 20, 5000.0, 20000, 4096, 64)
    assert rules.tenants["beta"].limits == TenantLimits()
    assert [(key.id, key.tenant, key.digest.hex()) for key in rules.keys] == [("acme-2026", "acme", DIGEST)]
    assert [(name.kind.value, name.value, tenant) for name, tenant in rules.certificates.items()] == [
        ("dns", "gateway.beta.test", "beta")
    ]
    assert load_access(path).value == rules


ADDED_KEY = f"""\
  - id: acme-2027
    tenant: acme
    sha256: "{OTHER_DIGEST}"
"""
CASES: dict[str, tuple[str, str, str]] = {
    # What is written in place of what, and what is said about it.
    "version": ("version: 1", "version: 2", "1: version: must be 1"),
    "misspelt limit": ("max_streams:", "max_stream:", "4: tenants.acme.max_stream: there is no such key; did you mean"),
    "limit of none": ("max_streams: 100", "max_streams: 0", "4: tenants.acme.max_streams: must be greater than or"),
    "limit in quotes": ("max_streams: 100", 'max_streams: "100"', "4: tenants.acme.max_streams: must be a valid int"),
    "half a rate": ("    burst_tokens: 20000\n", "", "3: tenants.acme: tokens_per_s and burst_tokens: both or neither"),
    "no rate": ("tokens_per_s: 5000", "tokens_per_s: 0", "6: tenants.acme.tokens_per_s: must be greater than 0"),
    "tenant's name": ("  beta:", "  be ta:", '10: tenants."be ta": must match pattern'),
    "tenant twice": ("  beta:", "  beta:\n  acme:", "11: tenants.acme: is there twice, first in line 3"),
    "no tenant of a key": ("    tenant: acme\n", "", "12: keys.0.tenant: is missing"),
    "unknown tenant of a key": ("tenant: acme\n", "tenant: acne\n", "13: keys.0.tenant: there is no tenant acne"),
    "unknown tenant of a certificate": ("tenant: beta", "tenant: bet", "17: certificates.0.tenant: there is no tenant"),
    "digest that is too short": (DIGEST, DIGEST[1:], "14: keys.0.sha256: must match pattern '^[0-9a-f]{64}$'"),
    "digest in capitals": (DIGEST, DIGEST.upper(), "14: keys.0.sha256: must match pattern"),
    "the key itself": (DIGEST, ACME_KEY, "14: keys.0.sha256: this is a key, not its SHA-256"),
    "day alone": ("2126-12-31T23:59:59+02:00", "2126-12-31", "15: keys.0.expires: must have timezone info"),
    "no moment": ("2126-12-31T23:59:59+02:00", "never", "15: keys.0.expires: must be a valid datetime"),
    "key's name twice": (
        "certificates:",
        ADDED_KEY.replace("2027", "2026") + "certificates:",
        "16: keys.1.id: the same",
    ),
    "key twice": ("certificates:", ADDED_KEY.replace(OTHER_DIGEST, DIGEST) + "certificates:", "18: keys.1.sha256: the"),
    "certificate twice": (
        "    dns: gateway.beta.test\n",
        "    dns: gateway.beta.test\n  - tenant: acme\n    dns: GATEWAY.beta.test\n",
        "19: certificates.1: the same as in certificates.0",
    ),
    "certificate without a name": ("    dns: gateway.beta.test\n", "", "17: certificates.0: exactly one of dns, uri"),
    "certificate of two names": (
        "    dns: gateway.beta.test\n",
        "    dns: gateway.beta.test\n    uri: spiffe://beta.test\n",
        "17: certificates.0: exactly one of dns, uri, common_name must be set",
    ),
    "anchor": ("  beta:", "  beta: &limits {}", "10: tenants.beta: anchors are not allowed"),
}


@pytest.mark.parametrize(("written", "instead", "told"), CASES.values(), ids=CASES.keys())
def test_mistake(path: Path, written: str, instead: str, told: str) -> None:
    assert written in GOOD
    found = mistakes(path, GOOD.replace(written, instead, 1))
    assert len(found) == 1
    assert found[0].startswith(told)
    assert ACME_KEY not in found[0]


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    content = GOOD.replace("max_streams: 100", "max_streams: none").replace("tenant: beta", "tenant: [beta]")
    assert [line.split(":")[0] for line in mistakes(path, content)] == ["4", "17"]


def test_nobody_could_be_let_in(path: Path) -> None:
    (told,) = mistakes(path, "version: 1\ntenants: {acme: {}}\n")
    assert "at least one is needed, or nobody is let in" in told


def test_no_tenants(path: Path) -> None:
    assert mistakes(path, "version: 1\ntenants: {}\n")[0].startswith("2: tenants: must have at least 1 item")


def test_no_file(path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read: No such file"):
        load_access(path)


def test_expired_keys_are_told_and_do_not_keep_the_server_from_starting(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    AccessFile(path).write()
    with caplog.at_level(logging.WARNING):
        load_access(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: keys.2: key acme-0 has expired and lets nobody in"
    ]


# --- the issuer's key set --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer("RS256")


def write_jwt(path: Path, issuer: Issuer, keys: Any, **changes: Any) -> AccessFile:  # noqa: ANN401 any JSON
    (path.parent / "keys.json").write_text(keys if isinstance(keys, str) else json.dumps(keys))
    file = AccessFile(path, jwt=issuer.rules(**changes))
    file.write()
    return file


def test_key_set_is_read_beside_the_access_file(path: Path, issuer: Issuer) -> None:
    write_jwt(path, issuer, {"keys": [issuer.web_key()]})
    loaded = load_access(path)
    assert loaded.paths == (path, path.parent / "keys.json")
    assert loaded.value.tokens
    assert {kid: key.algorithms for kid, key in loaded.value.tokens.keys.items()} == {"one": ("RS256",)}
    assert load_access(path).value == loaded.value


def test_keys_for_other_things_are_passed_over(path: Path, issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    others = [
        issuer.web_key() | {"kid": "encryption", "use": "enc"},
        issuer.web_key() | {"kid": "signing", "key_ops": ["sign"]},
        issuer.web_key() | {"kid": "other algorithm", "alg": "RS512"},
        {"kid": "other type", "kty": "AKP"},
    ]
    write_jwt(path, issuer, {"keys": [*others, issuer.web_key(alg="RS256")]})
    rules = load_access(path).value
    assert rules.tokens
    assert set(rules.tokens.keys) == {"one"}
    assert [record.getMessage().split(": ")[1] for record in caplog.records if "passed over" in record.message] == [
        "keys.2",
        "keys.3",
    ]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("{", "Invalid JSON: EOF while parsing an object at line 1"),
        ([], "Input should be an object"),
        ({}, "keys: Field required"),
        ({"keys": []}, "keys: none can have signed with RS256"),
        ({"keys": [{"kty": "RSA", "kid": "x"}]}, "keys.0: not a public key of type RSA"),
        ({"keys": [{"kty": "RSA", "kid": "x", "n": "AQAB", "e": "AQAB"}]}, "keys.0: not a public key of type RSA"),
        ({"keys": [{"kty": "oct", "kid": "x", "k": "c2VjcmV0"}]}, "keys.0.kty: a symmetric key"),
        ({"keys": [{"kty": "RSA", "kid": "x", "d": "c2VjcmV0"}]}, "keys.0.d: a private key"),
        ({"keys": [{"kid": "x"}]}, "keys.0.kty: Field required"),
        ({"keys": [{"kty": 5}]}, "keys.0.kty: Input should be a valid string"),
    ],
)
def test_mistake_in_the_key_set(path: Path, issuer: Issuer, keys: Any, told: str) -> None:  # noqa: ANN401
    write_jwt(path, issuer, keys)
    with pytest.raises(StartupError) as raised:
        load_access(path)
    assert str(raised.value).startswith(f"{path.parent / 'keys.json'}: {told}")
    assert "c2VjcmV0" not in str(raised.value)


@pytest.mark.parametrize(("parameters", "told"), [({"kid": ""}, "keys.1.kid: is missing"), ({}, "keys.1.kid: another")])
def test_names_of_keys(path: Path, issuer: Issuer, parameters: dict[str, str], told: str) -> None:
    write_jwt(path, issuer, {"keys": [issuer.web_key(), issuer.web_key() | parameters]})
    with pytest.raises(StartupError, match=told):
        load_access(path)


def test_missing_key_set(path: Path, issuer: Issuer) -> None:
    AccessFile(path, jwt=issuer.rules()).write()
    with pytest.raises(StartupError, match=r"keys\.json: cannot be read: No such file"):
        load_access(path)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "HS512"])
def test_algorithms_that_everybody_can_sign_with(path: Path, issuer: Issuer, algorithm: str) -> None:
    write_jwt(path, issuer, {"keys": [issuer.web_key()]}, algorithms=["RS256", algorithm])
    with pytest.raises(StartupError, match=r"jwt\.algorithms\.1: must be asymmetric"):
        load_access(path)


def test_unknown_algorithm(path: Path, issuer: Issuer) -> None:
    write_jwt(path, issuer, {"keys": [issuer.web_key()]}, algorithms=["RSA"])
    with pytest.raises(StartupError, match=r"jwt\.algorithms\.0: must be 'RS256'"):
        load_access(path)


# --- changes ---------------------------------------------------------------------------------------------------------


def test_changes_of_both_files_are_noticed(path: Path, issuer: Issuer) -> None:
    file = write_jwt(path, issuer, {"keys": [issuer.web_key()]})
    watched = ReloadedFile("access_file", lambda: load_access(path))
    assert watched.reload() is None
    assert watched.reload() is None
    file.keys.append(key_entry("acme-2", "acme", "gw_new"))
    file.write()
    loaded = watched.reload()
    assert loaded
    watched.take(loaded)
    assert watched.reload() is None
    Issuer("RS256", "two").write_key_set(path.parent / "keys.json", issuer)
    loaded = watched.reload()
    assert loaded
    assert loaded.value.tokens
    assert set(loaded.value.tokens.keys) == {"one", "two"}


def test_a_mistake_in_the_key_set_leaves_all_as_it_was(path: Path, issuer: Issuer) -> None:
    write_jwt(path, issuer, {"keys": [issuer.web_key()]})
    watched = ReloadedFile("access_file", lambda: load_access(path))
    rules = watched.value
    (path.parent / "keys.json").write_text("{}")
    with pytest.raises(StartupError, match=r"keys\.json: keys: Field required"):
        watched.reload()
    assert watched.value is rules
