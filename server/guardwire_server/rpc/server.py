"""The gRPC server: its options, its services, its start and its end."""

import socket

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from guardwire.v1 import moderation_pb2, moderation_pb2_grpc
from guardwire_server.core.errors import StartupError
from guardwire_server.rpc.health import HealthMonitor
from guardwire_server.rpc.service import ModerationService

MODERATION_SERVICE = moderation_pb2.DESCRIPTOR.services_by_name["ModerationService"].full_name
SERVICES = (MODERATION_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
"""The services that reflection lists and health answers for."""

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
"""Version 1 has the messages of v1alpha under another name; grpcio-reflection has v1alpha alone."""

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""gRPC's own default, stated: a conversation of 64 messages at the default limit of each."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # With the bandwidth probe on, a caller that reads slowly makes gRPC queue megabytes per stream before a write
    # blocks; with these two it is tens of kilobytes.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    # Callers may ping idle streams; by default the fifth ping within two hours kills the connection.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller whose machine vanished is noticed.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A second server on the same port is a mistake, not a load balancer.
    ("grpc.so_reuseport", 0),
)


def check_address(address: str) -> None:
    """Finds out whether an address can be bound, without keeping it.

    Raises:
        StartupError: If it cannot.
    """
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as error:
        raise StartupError(f"listen: cannot bind {address}: {error.strerror}") from None


class RpcServer:
    """Owner of the gRPC server. Thread: the event loop."""

    def __init__(self, service: ModerationService, health_monitor: HealthMonitor, *, has_reflection: bool) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        moderation_pb2_grpc.add_ModerationServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health_monitor.servicer, self._server)
        if has_reflection:
            self._add_reflection()

    async def start(self, address: str) -> str:
        """Binds and serves; returns the bound address, with the port that was picked if 0 was asked for.

        Raises:
            StartupError: If the address cannot be bound.
        """
        host, _, _ = address.rpartition(":")
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise StartupError(f"listen: cannot bind {address}; is another server there?")
        await self._server.start()
        return f"{host}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets open ones end within `grace_s`, then cuts them."""
        await self._server.stop(grace_s)

    def _add_reflection(self) -> None:
        servicer = ReflectionServicer(SERVICES)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._server)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler})
        self._server.add_generic_rpc_handlers((generic,))
