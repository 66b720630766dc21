"""Web tokens: good ones of every algorithm, and every way in which one can be bad."""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardwire_server.access.credentials import PresentedCredentials
from guardwire_server.access.rules import AccessRules
from guardwire_server.core.errors import PermissionDenied, RequestError, Unauthenticated
from tests.access.access_file import AccessFile
from tests.access.bad_tokens import BAD_TOKENS, TOKENS_OF_NO_TENANT, ago, with_public_key_as_secret
from tests.access.issuer import AUDIENCE, TENANT_CLAIM, URL, Issuer, forged, segment


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def stranger() -> Issuer:
    """Somebody whom nobody trusts, under the other one's name."""
    return Issuer()


@pytest.fixture(scope="module")
def rules(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> AccessRules:
    return trusting(issuer, tmp_path_factory.mktemp("access"))


def trusting(issuer: Issuer, directory: Path, *others: Issuer, **changes: Any) -> AccessRules:  # noqa: ANN401
    issuer.write_key_set(directory / "keys.json", *others)
    return AccessFile(directory / "access.yaml", jwt=issuer.rules(**changes)).load()


def tenant_of(rules: AccessRules, token: str) -> str:
    return rules.identify(PresentedCredentials(token), datetime.now(UTC)).name


def refusal(rules: AccessRules, token: str) -> RequestError:
    with pytest.raises(RequestError) as raised:
        tenant_of(rules, token)
    return raised.value


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS384", "ES256", "ES384", "ES512", "EdDSA"])
def test_good_token(tmp_path: Path, algorithm: str) -> None:
    issuer = Issuer(algorithm)
    rules = trusting(issuer, tmp_path)
    assert tenant_of(rules, issuer.token("acme")) == "acme"
    assert tenant_of(rules, issuer.token("beta", aud=["other", AUDIENCE])) == "beta"
    altered = issuer.token("acme").split(".")
    altered[1] = segment(json.dumps({"iss": URL, "aud": AUDIENCE, "exp": 2**40, TENANT_CLAIM: "beta"}).encode())
    assert refusal(rules, ".".join(altered)).reason == "INVALID_CREDENTIAL"


@pytest.mark.parametrize(("cause", "make"), BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_bad_token(
    rules: AccessRules,
    issuer: Issuer,
    stranger: Issuer,
    caplog: pytest.LogCaptureFixture,
    cause: str,
    make: Callable[[Issuer, Issuer], str],
) -> None:
    token = make(issuer, stranger)
    with caplog.at_level(logging.DEBUG):
        error = refusal(rules, token)
    assert (type(error), error.reason) == (Unauthenticated, "INVALID_CREDENTIAL")
    assert error.message == "the credential is not valid"
    assert [record.getMessage() for record in caplog.records] == [f"refused: a web token: {cause}"]
    for part in token.split("."):
        assert len(part) < 3 or part not in caplog.text + repr(error)


@pytest.mark.parametrize("make", TOKENS_OF_NO_TENANT.values(), ids=TOKENS_OF_NO_TENANT.keys())
def test_good_token_of_no_tenant(rules: AccessRules, issuer: Issuer, make: Callable[[Issuer], str]) -> None:
    error = refusal(rules, make(issuer))
    assert (type(error), error.reason) == (PermissionDenied, "UNKNOWN_TENANT")


def test_clocks_may_differ(rules: AccessRules, issuer: Issuer) -> None:
    assert tenant_of(rules, issuer.token(exp=ago(seconds=2))) == "acme"
    assert tenant_of(rules, issuer.token(nbf=ago(seconds=-2), iat=ago(seconds=-2))) == "acme"


def test_tokens_name_their_key(tmp_path: Path) -> None:
    old, new = Issuer("ES256", "old"), Issuer("EdDSA", "new")
    rules = trusting(old, tmp_path, new, algorithms=["ES256", "EdDSA"])
    assert tenant_of(rules, old.token("acme")) == "acme"
    assert tenant_of(rules, new.token("beta")) == "beta"
    for issuer, other in ((old, new), (new, old)):
        assert refusal(rules, issuer.token(headers={"kid": other.kid})).reason == "INVALID_CREDENTIAL"


def test_without_an_issuer_no_token_is_taken(tmp_path: Path, issuer: Issuer) -> None:
    rules = AccessFile(tmp_path / "access.yaml").load()
    assert refusal(rules, issuer.token()).reason == "INVALID_CREDENTIAL"


_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=+/~"
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "zip"]), _JSON)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_text_is_refused_in_good_order(rules: AccessRules, issuer: Issuer, data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        token = data.draw(st.text(_CHARACTERS, max_size=200))
    else:
        header = {"alg": "RS256", "kid": issuer.kid} | data.draw(_HEADERS)
        token = forged(header, {"exp": data.draw(_JSON)}, data.draw(st.binary(max_size=300)))
    assert refusal(rules, token).reason == "INVALID_CREDENTIAL"


def test_the_library_is_not_asked_with_what_a_token_says(
    rules: AccessRules, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    decode = jwt.decode

    def remember(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        asked.append(tuple(options["algorithms"]))
        return decode(*arguments, **options)

    monkeypatch.setattr(jwt, "decode", remember)
    tenant_of(rules, issuer.token())
    refusal(rules, with_public_key_as_secret(issuer))
    assert asked == [("RS256",), ("RS256",)]
