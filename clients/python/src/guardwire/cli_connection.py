"""How the command reaches its server: the address, TLS, who is calling, and what may be wrong when it does not."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import grpc

from guardwire.async_client import AsyncClient
from guardwire.cli_arguments import number, target
from guardwire.cli_input import InputError, UsageError
from guardwire.client import Client
from guardwire.credentials import read_api_key, tls_credentials
from guardwire.errors import DeadlineExceeded, GuardwireError, InvalidRequest, Unavailable

_MAX_TIMEOUT_S = 1_000_000

_SOURCES = {
    "ca_file": "--tls-ca",
    "cert_file": "--tls-cert",
    "key_file": "--tls-key",
    "api_key_file": "--api-key-file",
    "api_key": "GUARDWIRE_API_KEY",
}
"""Where the arguments of the client come from."""


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands take; a key is never an argument, since every process can see those."""
    parser.add_argument(
        "--target",
        type=target,
        default=os.environ.get("GUARDWIRE_TARGET") or "localhost:50051",
        metavar="HOST:PORT",
        help="the server; default: GUARDWIRE_TARGET, or localhost:50051",
    )
    parser.add_argument(
        "--timeout",
        type=number(float, _MAX_TIMEOUT_S),
        default=60.0,
        metavar="SECONDS",
        help="how long one call may take; default: 60",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="a file with the key or token to show the server; default: the variable GUARDWIRE_API_KEY",
    )
    parser.add_argument("--tls", action="store_true", help="use TLS, as the next three do by themselves")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE.pem", help="the authorities to trust; default: gRPC's own")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE.pem", help="a client certificate to show the server")
    parser.add_argument("--tls-key", type=Path, metavar="FILE.pem", help="the private key of --tls-cert")


def connect(arguments: argparse.Namespace) -> Client:
    """The client that the arguments ask for.

    Raises:
        UsageError: Of --tls-cert and --tls-key one is missing.
        InputError: A file cannot be used, or a key cannot be sent.
    """
    try:
        return Client(
            arguments.target,
            timeout_s=arguments.timeout,
            credentials=_credentials(arguments),
            api_key=_api_key(arguments),
        )
    except InvalidRequest as error:
        what = error.message.removeprefix(f"{error.field}: ")
        raise InputError(f"{_SOURCES.get(error.field, error.field)}: {what}") from None


def connect_async(arguments: argparse.Namespace) -> AsyncClient:
    """The twin of `connect` for commands that need asyncio; `connect` has found the arguments good."""
    return AsyncClient(
        arguments.target,
        timeout_s=arguments.timeout,
        credentials=_credentials(arguments),
        api_key=_api_key(arguments),
    )


def description(error: GuardwireError, arguments: argparse.Namespace) -> str:
    """What a call failed with, for people who have only the command line to put it right."""
    facts = [error.code.name]
    facts += [error.reason] if error.reason else []
    facts += [f"field {error.field}"] if error.field else []
    facts += [f"retry after {error.retry_after_s:g} s"] if error.retry_after_s is not None else []
    facts += [f"request id {error.request_id}"] if error.request_id else []
    message = error.message
    if isinstance(error, DeadlineExceeded) and not error.reason:
        message = f"no answer within {arguments.timeout:g} s"  # gRPC says no more than the status does
    hint = _tls_hint(error.message, arguments) if isinstance(error, Unavailable) else ""
    return f"{message} ({', '.join(facts)}){hint}"


def _tls_hint(message: str, arguments: argparse.Namespace) -> str:
    """A sentence for what gRPC says when a handshake fails: no word of TLS, or OpenSSL's own."""
    if "WRONG_VERSION_NUMBER" in message:
        return ". The server does not speak TLS: leave out --tls and its files."
    if "CERTIFICATE_VERIFY_FAILED" in message and "has expired" not in message and "not yet valid" not in message:
        return ". The server's certificate is not from the authorities that are trusted here (--tls-ca)."
    if "failed to connect" not in message or "Socket closed" not in message:
        return ""
    if not _uses_tls(arguments):
        return ". Does the server want TLS (--tls, --tls-ca), and a client certificate (--tls-cert, --tls-key)?"
    if arguments.tls_cert is None:
        return ". Does the server want a client certificate (--tls-cert, --tls-key)?"
    return ". Does the server trust the authority of the client certificate (--tls-cert), and is it still valid?"


def _uses_tls(arguments: argparse.Namespace) -> bool:
    return bool(arguments.tls or arguments.tls_ca or arguments.tls_cert)


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise UsageError("--tls-cert and --tls-key: give both or neither")
    if not _uses_tls(arguments):
        return None
    return tls_credentials(ca_file=arguments.tls_ca, cert_file=arguments.tls_cert, key_file=arguments.tls_key)


def _api_key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_file is not None:
        return read_api_key(arguments.api_key_file)
    api_key = os.environ.get("GUARDWIRE_API_KEY", "")
    return api_key.strip() or None
