"""Which server a client's target names, for telemetry."""

from __future__ import annotations

import re

_HOST_SCHEMES = re.compile(r"(dns:(//[^/]*/)?|ipv4:|ipv6:)")
_SOCKET_SCHEMES = re.compile(r"unix(-abstract)?:(//(?=/))?")
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]+\]|[^\[\]:/,]+)(:(?P<port>\d+))?")


def server_address(target: str) -> tuple[str, int | None]:
    """The address and the port of a grpc target.

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
