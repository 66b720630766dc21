"""What counts as a credential, whose it is, and what a refusal gives away: nothing."""

import hashlib
import hmac
import logging
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardwire_server.access.credentials import (
    MAX_AUTHORIZATION_BYTES,
    CertificateName,
    NameKind,
    PresentedCredentials,
    certificate_name,
    read_bearer,
)
from guardwire_server.access.rules import AccessKey, AccessRules, Tenant
from guardwire_server.core.errors import PermissionDenied, RequestError, Unauthenticated
from tests.access.access_file import ACME_KEY, BETA_KEY, FORMER_KEY, AccessFile

NOW = datetime(2026, 11, 22, tzinfo=UTC)
ALL_KEYS = (ACME_KEY, BETA_KEY, FORMER_KEY)


@pytest.fixture
def file(tmp_path: Path) -> AccessFile:
    return AccessFile(tmp_path / "access.yaml")


def refusal(rules: AccessRules, presented: PresentedCredentials, now: datetime = NOW) -> RequestError:
    with pytest.raises(RequestError) as raised:
        rules.identify(presented, now)
    return raised.value


def names(**values: str) -> frozenset[CertificateName]:
    return frozenset(certificate_name(NameKind(kind), value) for kind, value in values.items())


# --- the header ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Bearer abc.d-e_f~+/=", "bearer abc.d-e_f~+/=", "BEARER   abc.d-e_f~+/="])
def test_bearer(header: str) -> None:
    assert read_bearer([header]) == "abc.d-e_f~+/="


def test_no_header() -> None:
    assert read_bearer([]) is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Basic YWNtZTpzZWNyZXQ=",
        "gw_secret",
        "Bearer two words",
        "Bearer sécret",
        "Bearergw_",
    ],
)
def test_malformed_header(header: str) -> None:
    with pytest.raises(Unauthenticated, match="must be `Bearer`, a space, and the key or token") as raised:
        read_bearer([header])
    assert (raised.value.reason, raised.value.field) == ("MALFORMED_CREDENTIAL", "")


def test_several_headers() -> None:
    with pytest.raises(Unauthenticated, match="there are 2 authorization headers") as raised:
        read_bearer([f"Bearer {ACME_KEY}", f"Bearer {ACME_KEY}"])
    assert raised.value.reason == "MALFORMED_CREDENTIAL"


def test_oversized_header() -> None:
    largest = "Bearer " + "x" * (MAX_AUTHORIZATION_BYTES - len("Bearer "))
    assert read_bearer([largest])
    with pytest.raises(Unauthenticated, match="more than 8192 bytes"):
        read_bearer([largest + "x"])


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_header_is_taken_or_refused(header: str) -> None:
    try:
        bearer = read_bearer([header])
    except Unauthenticated as error:
        refused = error
    else:
        assert bearer
        assert set(bearer) <= set(string.ascii_letters + string.digits + "-._~+/=")
        return
    assert refused.reason == "MALFORMED_CREDENTIAL"
    assert refused.message == "the authorization header must be `Bearer`, a space, and the key or token"  # not its own


# --- keys ------------------------------------------------------------------------------------------------------------


def test_keys_belong_to_their_tenants(file: AccessFile) -> None:
    rules = file.load()
    assert rules.identify(PresentedCredentials(ACME_KEY), NOW).name == "acme"
    assert rules.identify(PresentedCredentials(BETA_KEY), NOW).name == "beta"


def test_unknown_mistyped_and_expired_keys_are_refused_alike(file: AccessFile) -> None:
    rules = file.load()
    wrong = [FORMER_KEY, "gw_", "gw_unknown", ACME_KEY[:-1], ACME_KEY + "k", ACME_KEY.upper(), "a.b.c", "secret"]
    errors = [refusal(rules, PresentedCredentials(key)) for key in wrong]
    assert {(type(error), error.reason, error.message) for error in errors} == {
        (Unauthenticated, "INVALID_CREDENTIAL", "the credential is not valid")
    }


def test_the_log_tells_an_expired_key_by_its_id(file: AccessFile, caplog: pytest.LogCaptureFixture) -> None:
    rules = file.load()
    with caplog.at_level(logging.INFO):
        refusal(rules, PresentedCredentials(FORMER_KEY))
    assert "key acme-0 of tenant acme has expired" in caplog.text


def test_a_key_expires_at_its_moment(file: AccessFile) -> None:
    rules, moment = file.load(), datetime(2125, 1, 1, tzinfo=UTC)
    assert rules.identify(PresentedCredentials(ACME_KEY), moment - timedelta(seconds=1)).name == "acme"
    assert refusal(rules, PresentedCredentials(ACME_KEY), moment).reason == "INVALID_CREDENTIAL"


def test_a_digest_is_no_key(file: AccessFile) -> None:
    rules = file.load()
    for digest in (file.keys[0]["sha256"], f"gw_{file.keys[0]['sha256']}"):
        assert refusal(rules, PresentedCredentials(digest)).reason == "INVALID_CREDENTIAL"


@pytest.mark.parametrize("key", [*ALL_KEYS, "gw_unknown"])
def test_every_key_is_compared_in_constant_time(file: AccessFile, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    rules, compared = file.load(), list[tuple[bytes, bytes]]()

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    try:
        rules.identify(PresentedCredentials(key), NOW)
    except Unauthenticated:
        assert key not in (ACME_KEY, BETA_KEY)
    presented = hashlib.sha256(key.encode()).digest()
    assert compared == [(presented, known.digest) for known in rules.keys]


def test_nothing_but_the_comparison_decides(file: AccessFile, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = file.load()
    monkeypatch.setattr(hmac, "compare_digest", lambda _one, other: other == rules.keys[1].digest)
    assert rules.identify(PresentedCredentials("gw_unknown"), NOW).name == "beta"
    monkeypatch.setattr(hmac, "compare_digest", lambda _one, _other: False)
    assert refusal(rules, PresentedCredentials(ACME_KEY)).reason == "INVALID_CREDENTIAL"


def test_digests_cannot_be_compared_otherwise() -> None:
    """Whoever compares keys or digests with `==` gets False for ever."""

    class Incomparable(bytes):
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = bytes.__hash__

    digest = Incomparable(hashlib.sha256(ACME_KEY.encode()).digest())
    rules = AccessRules({"acme": Tenant("acme")}, (AccessKey("one", "acme", digest),))
    assert rules.identify(PresentedCredentials(ACME_KEY), NOW).name == "acme"


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def certified(file: AccessFile) -> AccessRules:
    file.certificates = [
        {"tenant": "acme", "dns": "Gateway.Acme.test"},
        {"tenant": "acme", "common_name": "Acme"},
        {"tenant": "beta", "uri": "spiffe://beta.test/gateway"},
    ]
    return file.load()


@pytest.mark.parametrize(
    ("shown", "tenant"),
    [
        ({"dns": "gateway.acme.TEST"}, "acme"),
        ({"common_name": "Acme"}, "acme"),
        ({"common_name": "Acme", "dns": "gateway.acme.test"}, "acme"),
        ({"uri": "spiffe://beta.test/gateway", "dns": "unknown.test"}, "beta"),
    ],
)
def test_certificates_belong_to_their_tenants(certified: AccessRules, shown: dict[str, str], tenant: str) -> None:
    presented = PresentedCredentials(certificate_names=names(**shown))
    assert certified.identify(presented, NOW).name == tenant


@pytest.mark.parametrize(
    "shown",
    [
        {"dns": "other.acme.test"},
        {"common_name": "acme"},  # case counts here
        {"common_name": "gateway.acme.test"},  # another field
        {"dns": "Acme"},
        {"uri": "spiffe://beta.test/gateway/more"},
    ],
)
def test_certificates_of_no_tenant(certified: AccessRules, shown: dict[str, str]) -> None:
    error = refusal(certified, PresentedCredentials(certificate_names=names(**shown)))
    assert (type(error), error.reason) == (PermissionDenied, "UNKNOWN_TENANT")


def test_a_certificate_of_two_tenants(certified: AccessRules) -> None:
    shown = names(common_name="Acme", uri="spiffe://beta.test/gateway")
    error = refusal(certified, PresentedCredentials(certificate_names=shown))
    assert (type(error), error.reason) == (PermissionDenied, "AMBIGUOUS_CERTIFICATE")


def test_a_key_decides_over_a_certificate(certified: AccessRules) -> None:
    shown = names(common_name="Acme")
    assert certified.identify(PresentedCredentials(BETA_KEY, shown), NOW).name == "beta"
    assert refusal(certified, PresentedCredentials("gw_unknown", shown)).reason == "INVALID_CREDENTIAL"


def test_certificates_without_entries_are_no_credentials(file: AccessFile) -> None:
    error = refusal(file.load(), PresentedCredentials(certificate_names=names(common_name="Acme")))
    assert (type(error), error.reason) == (Unauthenticated, "CREDENTIAL_REQUIRED")


def test_nothing_at_all(certified: AccessRules) -> None:
    error = refusal(certified, PresentedCredentials())
    assert (type(error), error.reason) == (Unauthenticated, "CREDENTIAL_REQUIRED")


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_repr_log_or_error(file: AccessFile, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        rules = file.load()
        errors = [refusal(rules, PresentedCredentials(key)) for key in (FORMER_KEY, "gw_unknown-secret")]
        shown = [repr(rules), repr(PresentedCredentials(ACME_KEY)), str(PresentedCredentials(ACME_KEY))]
        shown += [repr(error) + str(error) + repr(error.__context__) for error in errors]
    text = "\n".join([*shown, caplog.text])
    assert "acme-1" in text
    for secret in (*ALL_KEYS, "unknown-secret", *(key["sha256"] for key in file.keys)):
        assert secret not in text
        assert secret.removeprefix("gw_")[:8] not in text.replace("the credential", "")
