"""`guardwire-server health`: asks a running server how it is, for container health checks and exec probes."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guardwire_server.config import ServerConfig
from guardwire_server.core.errors import StartupError

_ANY_HOST = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
"""What a server on this machine that listens everywhere is reached by."""

_UNREACHED = ("Connection refused", "No route to host", "DNS")
"""What gRPC says where nothing answers at an address; whatever wants TLS lets a connection begin and then closes it."""


def own_target(config: ServerConfig) -> str:
    """Where the server with these settings answers for health on this machine.

    Raises:
        StartupError: If it does not without TLS, or at a port that nobody knows.
    """
    if config.health_listen is None and config.tls_cert:
        raise StartupError(f"health_listen: not set, and {config.listen} has TLS, which this check does not speak")
    host, _, port = (config.health_listen or config.listen).rpartition(":")
    if int(port) == 0:
        raise StartupError(f"{host}:{port} is whichever port is free; name the server with --target")
    return f"{_ANY_HOST.get(host, host)}:{port}"


def check_health(target: str, service: str, timeout_s: float) -> int:
    """Prints what a server says of a service; returns the exit status: 0 if it serves, else 1.

    Args:
        target: The server, HOST:PORT, without TLS.
        service: `readiness`, `liveness`, the name of a service, or empty for the whole server.
        timeout_s: How long the answer may take; a server that takes longer is not well.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    # A proxy that the environment names is for the way out, and this is the way to oneself.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            print(f"{target}: {_told(error, service)}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
    return 0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1


def _told(error: grpc.RpcError, service: str) -> str:
    """A failure in words, with what may be behind it."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        return f"{code.name}: there is no service {service!r}; {details}"
    if code is grpc.StatusCode.UNAVAILABLE and not any(told in details for told in _UNREACHED):
        return f"{code.name}: {details}; does it want TLS, which this check does not speak? health_listen has none"
    return f"{code.name}: {details}"
