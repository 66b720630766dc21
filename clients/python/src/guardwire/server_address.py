"""Which server a client's target names."""

from __future__ import annotations

import re

from guardwire.errors import invalid_request

_HOST_SCHEMES = re.compile(r"(dns:(//[^/]*/)?|ipv4:|ipv6:)")
_SOCKET_SCHEMES = re.compile(r"unix(-abstract)?:(//(?=/))?")
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^\[\]:/,]+)(:(?P<port>\d+))?")

_GRPC_NAME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p):.*[^/].*", re.DOTALL)
"""A name that gRPC resolves itself: https://github.com/grpc/grpc/blob/master/doc/naming.md."""

_WEB_SCHEME = re.compile(r"(https|grpcs?)://", re.IGNORECASE)
_MAX_PORT = 65_535


def check_target(target: str) -> None:
    """Finds out whether a target can name a server, without looking for it.

    gRPC takes every string: what has no scheme that it knows is a host to it, and a port that is missing is 443.

    Raises:
        InvalidRequest: It is neither HOST:PORT nor a name with a scheme of gRPC's.
    """
    if _GRPC_NAME.fullmatch(target):
        return
    named = _HOST_AND_PORT.fullmatch(target)
    if named is None or not named["port"] or not 0 < int(named["port"]) <= _MAX_PORT or re.search(r"\s", target):
        scheme = _WEB_SCHEME.match(target)
        without = scheme[0] if scheme else "http://"
        raise invalid_request(f"target: must be HOST:PORT, without {without}, not {target!r}", "target")


def server_address(target: str) -> tuple[str, int | None]:
    """The address and the port of a grpc target, for telemetry.

    Returns:
        One host, without brackets, and the port if it is stated; the path of a socket; and for every other target, such
        as a list of hosts or a name that some service resolves, the target as it is, since no one server is meant.

    Source: OpenTelemetry's conventions for gRPC clients, and grpc's syntax of names.
    """
    if socket := _SOCKET_SCHEMES.match(target):
        return target[socket.end() :], None
    scheme = _HOST_SCHEMES.match(target)
    named = _HOST_AND_PORT.fullmatch(target, scheme.end() if scheme else 0)
    if named is None:
        return target, None
    return named["host"].strip("[]"), int(named["port"]) if named["port"] else None
