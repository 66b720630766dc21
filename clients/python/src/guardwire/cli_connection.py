"""How the command reaches its server: the address, TLS, and who is calling."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import grpc

from guardwire.async_client import AsyncClient
from guardwire.cli_input import InputError
from guardwire.client import Client
from guardwire.credentials import read_api_key, tls_credentials


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands take; a key is never an argument, since every process can see those."""
    parser.add_argument(
        "--target",
        default=os.environ.get("GUARDWIRE_TARGET") or "localhost:50051",
        metavar="HOST:PORT",
        help="the server; default: GUARDWIRE_TARGET, or localhost:50051",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long one call may take; default: 60"
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
        InputError: A file cannot be used, or a key cannot be sent.
    """
    try:
        return Client(
            arguments.target,
            timeout_s=arguments.timeout,
            credentials=_credentials(arguments),
            api_key=_api_key(arguments),
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from None


def connect_async(arguments: argparse.Namespace) -> AsyncClient:
    """The twin of `connect` for commands that need asyncio; `connect` has found the arguments good."""
    return AsyncClient(
        arguments.target,
        timeout_s=arguments.timeout,
        credentials=_credentials(arguments),
        api_key=_api_key(arguments),
    )


def _credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        raise InputError("--tls-cert and --tls-key: give both or neither")
    if not (arguments.tls or arguments.tls_ca or arguments.tls_cert):
        return None
    return tls_credentials(ca_file=arguments.tls_ca, cert_file=arguments.tls_cert, key_file=arguments.tls_key)


def _api_key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_file is not None:
        return read_api_key(arguments.api_key_file)
    api_key = os.environ.get("GUARDWIRE_API_KEY", "")
    return api_key.strip() or None
