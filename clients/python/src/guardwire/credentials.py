"""Who the client is to the server, and whom it trusts."""

from __future__ import annotations

import re
from pathlib import Path

import grpc

from guardwire.tracing import CallMetadata, Metadata

_SENDABLE = re.compile(r"[!-~]+")


def tls_credentials(
    *,
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
) -> grpc.ChannelCredentials:
    """Makes the `credentials` of a client from PEM files, which are read once.

    Args:
        ca_file: The authorities whose servers are trusted; None: those that gRPC comes with.
        cert_file: The client's own certificate and its chain, for servers that ask for one.
        key_file: The private key of `cert_file`.

    Raises:
        OSError: A file cannot be read.
        ValueError: Of `cert_file` and `key_file` one is missing.
    """
    if (cert_file is None) != (key_file is None):
        raise ValueError("cert_file and key_file: give both or neither")
    ca, key, cert = (None if path is None else Path(path).read_bytes() for path in (ca_file, key_file, cert_file))
    return grpc.ssl_channel_credentials(ca, key, cert)


def read_api_key(path: str | Path) -> str:
    """The key in a file; white space around it is not part of it.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something that is no key.
    """
    try:
        api_key = Path(path).read_text(encoding="ascii").strip()
        _check(api_key)
    except ValueError:  # it says what could not be decoded, and that may be most of a key
        raise ValueError(f"{path} does not hold a key: one word of printable ASCII") from None
    return api_key


def call_metadata(metadata: Metadata, api_key: str | None) -> CallMetadata:
    """What goes with every call.

    Raises:
        ValueError: The key cannot be sent. gRPC would refuse it too, with a message that has it in full.
    """
    if api_key is None:
        return tuple(metadata)
    _check(api_key)
    return (*metadata, ("authorization", f"Bearer {api_key}"))


def _check(api_key: str) -> None:
    if not _SENDABLE.fullmatch(api_key):
        raise ValueError("api_key: must be one word of printable ASCII")
