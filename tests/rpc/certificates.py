"""Certificate authorities of the tests' own, what they issue, and files with it that a server can be given."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

LIFETIME = timedelta(days=30)
"""Long enough that no server warns."""

_BEGIN = timedelta(days=2)
"""How long ago certificates begin to be valid, so that one can have expired since."""


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM form."""

    certificate: bytes
    private_key: bytes

    @property
    def not_after(self) -> float:
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc.timestamp()


class Authority:
    """Signs certificates. They name its key, without which TLS cannot tell it from another one by the same name."""

    def __init__(self, name: str, lifetime: timedelta = LIFETIME) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(name)
        public_key = self._key.public_key()
        certificate = (
            _builder(self._name, self._name, lifetime)
            .public_key(public_key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        name: str = "localhost",
        *,
        ends_in: timedelta = LIFETIME,
        begins_in: timedelta = -_BEGIN,
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> Issued:
        """A certificate for a server on this machine, or for a client by that name."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ip_address("127.0.0.1"))])
        certificate = (
            _builder(_common_name(name), self._name, ends_in, begins_in)
            .public_key(key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )


class CertificateFiles:
    """The files of a server's settings tls_cert, tls_key and tls_client_ca, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.cert, self.key, self.client_ca = (directory / name for name in ("tls.crt", "tls.key", "ca.crt"))

    def write(self, issued: Issued, client_authority: Authority | None = None) -> None:
        """Writes what is served with from now on."""
        self.cert.write_bytes(issued.certificate)
        self.key.write_bytes(issued.private_key)
        if client_authority:
            self.client_ca.write_bytes(client_authority.certificate)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by which a server finds them."""
        settings: dict[str, Any] = {"tls_cert": self.cert, "tls_key": self.key}
        return settings | ({"tls_client_ca": self.client_ca} if self.client_ca.exists() else {})


def client_credentials(trusted: Authority, own: Issued | None = None) -> grpc.ChannelCredentials:
    """What a client connects with: whom it trusts, and what it shows."""
    if own is None:
        return grpc.ssl_channel_credentials(trusted.certificate)
    return grpc.ssl_channel_credentials(trusted.certificate, own.private_key, own.certificate)


def shown_certificate(address: str) -> bytes:
    """The certificate that the server shows to whoever connects now, in PEM form; blocks until it has."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=20).encode()


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, ends_in: timedelta, begins_in: timedelta = -_BEGIN
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins_in)
        .not_valid_after(now + ends_in)
    )
