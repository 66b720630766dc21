"""TLS with certificates that may change while the server runs.

Theory of operation. gRPC asks for the certificates at every handshake, on threads of its own. It is answered from
memory: `ReloadedFile` has read and checked what is there. Certificate, key and client authorities are read together
and taken together or not at all, so a rotation that is half done, such as a new certificate whose key is still to
come, leaves the old ones in force until its other half is there. Whatever changes holds for new connections, resumed
TLS sessions included; those that are open go on as they are.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from guardwire_server.core.errors import StartupError
from guardwire_server.reloading import Loaded, ReloadedFile

logger = logging.getLogger(__name__)

EXPIRY_NOTICE_S = 14 * 86400.0
"""A certificate that ends sooner is worth a word in the log: it should have been replaced by now."""

_CURVES = ("secp256r1", "secp384r1")
"""The curves on which gRPC's TLS library agrees with its own clients; a handshake with a key on another one, or with an
Ed25519 key, fails."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What the files hold, checked.

    Attributes:
        certificate_chain: The server's certificate, and those that lead to its authority, in PEM form.
        private_key: The key of the certificate, in PEM form.
        client_authorities: Whose client certificates are let in, in PEM form; None: callers need none.
        not_after: When the server's certificate expires, in Unix time.
    """

    certificate_chain: bytes
    private_key: bytes = field(repr=False)
    client_authorities: bytes | None
    not_after: float


class ServerTls:
    """Owner of what handshakes are given. Threads: the event loop, and gRPC's for the handshakes.

    Invariant: `_given` belongs to gRPC's threads, which take turns; everything else to the event loop.
    """

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Reads the files of tls_cert, tls_key and tls_client_ca.

        Raises:
            StartupError: Naming setting and file, if something is wrong with one.
        """
        self._clock = clock
        self.files = ReloadedFile("tls_cert", lambda: read_tls_files(certificate, key, client_ca, clock()), self._take)
        self._warn(self.files.value)
        self._given = self._configuration = _configuration(self.files.value)

    @property
    def not_after(self) -> float:
        """When the certificate in force expires, in Unix time."""
        return self.files.value.not_after

    def credentials(self) -> grpc.ServerCredentials:
        """What one port is served with: gRPC is told of each change once."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._fetch,  # type: ignore[arg-type]  # the types forget that None means no change
            require_client_authentication=self.files.value.client_authorities is not None,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificates if they have changed, on gRPC's threads; None: the same as at the last handshake.

        Each change makes gRPC build a new TLS context, and so forget the sessions that callers could have resumed.
        """
        configuration = self._configuration
        if configuration is self._given:
            return None
        self._given = configuration
        return configuration

    def _take(self, files: TlsFiles) -> None:
        self._configuration = _configuration(files)
        self._warn(files)

    def _warn(self, files: TlsFiles) -> None:
        if files.not_after - self._clock() < EXPIRY_NOTICE_S:
            logger.warning("tls_cert: the certificate expires soon, on %s", _date(files.not_after))


def read_tls_files(certificate: Path, key: Path, client_ca: Path | None, now_s: float) -> Loaded[TlsFiles]:
    """Reads the files and checks that they can be served with, now and together.

    Args:
        certificate: The file of the setting tls_cert; the server's certificate comes first in it.
        key: The file of tls_key.
        client_ca: The file of tls_client_ca.
        now_s: The time, in Unix time.

    Raises:
        StartupError: Naming setting and file; never with anything that stands in the key's file.
    """
    chain, private_key = _read("tls_cert", certificate), _read("tls_key", key)
    own = _certificates("tls_cert", certificate, chain)[0]
    _check_period(own, certificate, now_s)
    if _private_key(key, private_key).public_key() != own.public_key():
        raise StartupError(f"tls_key: {key} is not the key of the certificate in {certificate} (tls_cert)")
    authorities = None
    if client_ca is not None:
        authorities = _read("tls_client_ca", client_ca)
        if not any(_is_valid(one, now_s) for one in _certificates("tls_client_ca", client_ca, authorities)):
            raise StartupError(f"tls_client_ca: no certificate in {client_ca} is valid at present")
    paths = (certificate, key) if client_ca is None else (certificate, key, client_ca)
    return Loaded(TlsFiles(chain, private_key, authorities, own.not_valid_after_utc.timestamp()), paths)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"{setting}: cannot read {path}: {error.strerror}") from None


def _certificates(setting: str, path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise StartupError(f"{setting}: {path} holds no certificate in PEM form, or a damaged one") from None


def _private_key(path: Path, content: bytes) -> PrivateKeyTypes:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise StartupError(f"tls_key: the key in {path} is encrypted; it must not be") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(f"tls_key: {path} holds no private key in PEM form, or a damaged one") from None
    is_usable = isinstance(key, rsa.RSAPrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES
    )
    if not is_usable:
        raise StartupError(f"tls_key: the key in {path} is neither an RSA key nor an EC key on P-256 or P-384")
    return key


def _check_period(certificate: x509.Certificate, path: Path, now_s: float) -> None:
    begin_s, end_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now_s >= end_s:
        raise StartupError(f"tls_cert: the certificate in {path} has expired on {_date(end_s)}")
    if now_s < begin_s:
        raise StartupError(f"tls_cert: the certificate in {path} is valid from {_date(begin_s)} only")


def _is_valid(certificate: x509.Certificate, now_s: float) -> bool:
    return certificate.not_valid_before_utc.timestamp() <= now_s < certificate.not_valid_after_utc.timestamp()


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pairs = [(files.private_key, files.certificate_chain)]
    return grpc.ssl_server_certificate_configuration(pairs, files.client_authorities)


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
