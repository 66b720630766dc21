"""The files of tls_cert, tls_key and tls_client_ca: what is refused, how it is named, what a half-done change does."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from guardwire_server.core.errors import StartupError
from guardwire_server.reloading import Reloader
from guardwire_server.rpc.tls import EXPIRY_NOTICE_S, ServerTls
from tests.rpc.certificates import LIFETIME, Authority, CertificateFiles, Issued


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("servers")


@pytest.fixture
def files(tmp_path: Path, authority: Authority) -> CertificateFiles:
    """A server's certificate, and clients' authority."""
    files = CertificateFiles(tmp_path)
    files.write(authority.issue(), Authority("clients"))
    return files


def read(files: CertificateFiles, clock: Callable[[], float] = time.time) -> ServerTls:
    return ServerTls(files.cert, files.key, files.client_ca, clock)


def refusal(files: CertificateFiles) -> str:
    """Why the files are refused; nothing of what the key's file holds may be in there."""
    with pytest.raises(StartupError) as raised:
        read(files)
    lines = files.key.read_text(errors="replace").splitlines() if files.key.exists() else []
    assert not any(line in raised.value.message for line in lines if line)
    return raised.value.message


def test_what_is_read(files: CertificateFiles, authority: Authority) -> None:
    issued = authority.issue()
    files.write(issued)
    tls = read(files)
    found = tls.files.value
    assert (found.certificate_chain, found.private_key) == (issued.certificate, issued.private_key)
    assert found.client_authorities == files.client_ca.read_bytes()
    assert tls.not_after == found.not_after == issued.not_after
    assert issued.private_key.decode().splitlines()[1] not in repr(found)
    assert ServerTls(files.cert, files.key).files.value.client_authorities is None


def test_chain_and_several_authorities(files: CertificateFiles, authority: Authority) -> None:
    issued = authority.issue()
    files.write(Issued(issued.certificate + authority.certificate, issued.private_key))
    files.client_ca.write_bytes(Authority("old", timedelta(seconds=-1)).certificate + authority.certificate)
    assert read(files).not_after == issued.not_after


@pytest.mark.parametrize("setting", ["tls_cert", "tls_key", "tls_client_ca"])
@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind", b"\xff\x00"])
def test_file_that_is_none(files: CertificateFiles, setting: str, content: bytes | None) -> None:
    path = {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": files.client_ca}[setting]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refusal(files)
    assert message.startswith(f"{setting}: ")
    assert str(path) in message
    assert ("cannot read" in message) == (content is None)


def test_damaged_certificate_and_key(files: CertificateFiles) -> None:
    certificate, key = files.cert.read_text(), files.key.read_text()
    files.cert.write_text(certificate.replace("MII", "AAA", 1))
    assert refusal(files) == f"tls_cert: {files.cert} holds no certificate in PEM form, or a damaged one"
    files.cert.write_text(certificate)
    files.key.write_text(key.replace("MI", "AA", 1))
    assert refusal(files) == f"tls_key: {files.key} holds no private key in PEM form, or a damaged one"


def test_files_in_each_others_place(files: CertificateFiles) -> None:
    certificate = files.cert.read_bytes()
    files.cert.write_bytes(files.key.read_bytes())
    files.key.write_bytes(certificate)
    assert refusal(files).startswith(f"tls_cert: {files.cert} holds no certificate")


def test_key_of_another_certificate(files: CertificateFiles, authority: Authority) -> None:
    files.key.write_bytes(authority.issue().private_key)
    assert refusal(files) == f"tls_key: {files.key} is not the key of the certificate in {files.cert} (tls_cert)"


def test_encrypted_key(files: CertificateFiles) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    encryption = BestAvailableEncryption(b"hunter2")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    assert refusal(files) == f"tls_key: the key in {files.key} is encrypted; it must not be"


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP521R1())])
def test_kind_of_key_that_no_caller_could_shake_hands_with(
    files: CertificateFiles, authority: Authority, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    files.write(authority.issue(key=key))
    message = refusal(files)
    assert message == f"tls_key: the key in {files.key} is neither an RSA key nor an EC key on P-256 or P-384"


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_other_kinds_of_key(
    files: CertificateFiles, authority: Authority, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    issued = authority.issue(key=key)
    files.write(issued)
    assert read(files).not_after == issued.not_after


def test_expired_certificate(files: CertificateFiles, authority: Authority) -> None:
    issued = authority.issue(ends_in=timedelta(seconds=-1))
    files.write(issued)
    date = datetime.fromtimestamp(issued.not_after, UTC).isoformat(timespec="seconds")
    assert refusal(files) == f"tls_cert: the certificate in {files.cert} has expired on {date}"


def test_certificate_of_tomorrow(files: CertificateFiles, authority: Authority) -> None:
    files.write(authority.issue(begins_in=timedelta(days=1)))
    assert refusal(files).startswith(f"tls_cert: the certificate in {files.cert} is valid from ")


def test_client_authorities_that_have_all_expired(files: CertificateFiles) -> None:
    files.client_ca.write_bytes(Authority("old", timedelta(seconds=-1)).certificate)
    assert refusal(files) == f"tls_client_ca: no certificate in {files.client_ca} is valid at present"


def test_certificate_that_ends_soon(files: CertificateFiles, caplog: pytest.LogCaptureFixture) -> None:
    end_s = read(files).not_after
    assert not caplog.records
    read(files, lambda: end_s - EXPIRY_NOTICE_S + 1)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "expires soon" in record.message


async def test_half_done_rotation(
    files: CertificateFiles, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    reloads: list[tuple[str, bool]] = []
    old, new = files.cert.read_bytes(), authority.issue(ends_in=LIFETIME * 2)
    tls = read(files)
    reloader = Reloader([tls.files], 1.0, lambda setting, is_valid: reloads.append((setting, is_valid)))
    await reloader.check()
    files.cert.write_bytes(new.certificate)
    await reloader.check()
    assert tls.files.value.certificate_chain == old
    assert f"tls_key: {files.key} is not the key of the certificate" in caplog.text
    files.key.write_bytes(new.private_key)
    await reloader.check()
    assert (tls.files.value.certificate_chain, tls.not_after) == (new.certificate, new.not_after)
    assert reloads == [("tls_cert", False), ("tls_cert", True)]
    assert new.private_key.decode().splitlines()[1] not in caplog.text


async def test_expired_successor_is_not_taken(
    files: CertificateFiles, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = read(files)
    before = tls.files.value
    files.write(authority.issue(ends_in=timedelta(seconds=-1)))
    await Reloader([tls.files], 1.0).check()
    assert tls.files.value == before
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"the certificate in {files.cert} has expired" in error.message
    assert "the old content stays" in error.message
