"""Who the client is to the server, and whom it trusts."""

from __future__ import annotations

import re
from pathlib import Path

import grpc

from guardwire.errors import invalid_request
from guardwire.tracing import CallMetadata, Metadata

_SENDABLE = re.compile(r"[!-~]+")

_CERTIFICATE = re.compile(rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED_KEY = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)


def tls_credentials(
    *,
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
) -> grpc.ChannelCredentials:
    """Makes the `credentials` of a client from PEM files, which are read once.

    gRPC finds a wrong file only when it connects, and does not say which one.

    Args:
        ca_file: The authorities whose servers are trusted; None: those that gRPC comes with.
        cert_file: The client's own certificate and its chain, for servers that ask for one.
        key_file: The private key of `cert_file`.

    Raises:
        InvalidRequest: Of `cert_file` and `key_file` one is missing, or a file cannot be read or holds something else;
            `field` is the argument.
    """
    if (cert_file is None) != (key_file is None):
        missing = "cert_file" if cert_file is None else "key_file"
        raise invalid_request("cert_file and key_file: give both or neither", missing)
    ca = None if ca_file is None else _read_certificates("ca_file", ca_file)
    cert = None if cert_file is None else _read_certificates("cert_file", cert_file)
    key = None if key_file is None else _read_private_key("key_file", key_file)
    return grpc.ssl_channel_credentials(ca, key, cert)


def read_api_key(path: str | Path) -> str:
    """The key in a file; white space around it is not part of it.

    Raises:
        InvalidRequest: The file cannot be read, or holds something that is no key.
    """
    content = _read("api_key_file", path).strip()
    api_key = content.decode("ascii") if content.isascii() else ""
    if not _SENDABLE.fullmatch(api_key):  # the message must not quote it: it may be most of a key
        message = f"api_key_file: {path} does not hold a key: one word of printable ASCII"
        raise invalid_request(message, "api_key_file")
    return api_key


def call_metadata(metadata: Metadata, api_key: str | None) -> CallMetadata:
    """What goes with every call.

    Raises:
        InvalidRequest: The key cannot be sent. gRPC would refuse it too, with a message that has it in full.
    """
    if api_key is None:
        return tuple(metadata)
    if not _SENDABLE.fullmatch(api_key):
        raise invalid_request("api_key: must be one word of printable ASCII", "api_key")
    return (*metadata, ("authorization", f"Bearer {api_key}"))


def _read_certificates(argument: str, path: str | Path) -> bytes:
    content = _read(argument, path)
    if not _CERTIFICATE.search(content):
        raise invalid_request(f"{argument}: {path} holds no certificate in PEM form", argument)
    return content


def _read_private_key(argument: str, path: str | Path) -> bytes:
    content = _read(argument, path)
    if not _PRIVATE_KEY.search(content):
        raise invalid_request(f"{argument}: {path} holds no private key in PEM form", argument)
    if _ENCRYPTED_KEY.search(content):
        raise invalid_request(f"{argument}: the key in {path} is encrypted; it must not be", argument)
    return content


def _read(argument: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise invalid_request(f"{argument}: cannot read {path}: {error.strerror}", argument) from None
