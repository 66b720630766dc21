"""The gRPC servers: their options, their services, their start and their end."""

import asyncio
import logging
import socket
from collections.abc import Sequence

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from guardwire.v1 import moderation_pb2, moderation_pb2_grpc
from guardwire_server.access.credentials import MAX_AUTHORIZATION_BYTES
from guardwire_server.core.errors import StartupError
from guardwire_server.rpc.health import HealthMonitor
from guardwire_server.rpc.service import ModerationService

MODERATION_SERVICE = moderation_pb2.DESCRIPTOR.services_by_name["ModerationService"].full_name
SERVICES = (MODERATION_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
"""The services that reflection lists and health answers for."""

CHANNELZ_SERVICE = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
"""Version 1 has the messages of v1alpha under another name; grpcio-reflection has v1alpha alone."""

MAX_REQUEST_BYTES = 4 * 1024 * 1024
"""gRPC's own default, stated: a conversation of 64 messages at the default limit of each."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # gRPC's default refuses calls at random from 8 KiB of metadata on; a credential alone may have as much.
    ("grpc.max_metadata_size", 2 * MAX_AUTHORIZATION_BYTES),
    ("grpc.absolute_max_metadata_size", 4 * MAX_AUTHORIZATION_BYTES),
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


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Whether a line of gRPC's says more than that a caller had gone when its status was to be sent.

    grpc.aio logs that as an error wherever it has not yet heard of the end, such as a deadline's. The error's class is
    none of its public ones.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (kind is not None and kind.__name__ == "ExecuteBatchError")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_logging)


def check_address(address: str, setting: str = "listen") -> None:
    """Finds out whether the address of a setting can be bound, without keeping it.

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
        raise StartupError(f"{setting}: cannot bind {address}: {error.strerror}") from None


class RpcServer:
    """Owner of the gRPC servers: the one that serves everything, and one for health alone if it is asked for.

    The second is for orchestrators, whose health checks speak no TLS and have no credentials. Thread: the event loop.
    """

    def __init__(
        self,
        service: ModerationService,
        health_monitor: HealthMonitor,
        *,
        has_reflection: bool,
        has_channelz: bool = False,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """Puts the servers together.

        Args:
            service: What answers the calls.
            health_monitor: Whose servicer answers for health, on both servers.
            has_reflection: Whether to serve reflection.
            has_channelz: Whether to serve channelz, which shows all connections of the process.
            credentials: TLS; None: plain text.
            interceptors: What calls pass on their way to the services; those for health alone pass none.
        """
        self._credentials = credentials
        self._health_servicer = health_monitor.servicer
        options = (*SERVER_OPTIONS, ("grpc.enable_channelz", int(has_channelz)))
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        self._health_server: grpc.aio.Server | None = None
        self.health_address: str | None = None
        moderation_pb2_grpc.add_ModerationServiceServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health_servicer, self._server)
        if has_channelz:
            channelz.add_channelz_servicer(self._server)
        if has_reflection:
            self._add_reflection((*SERVICES, CHANNELZ_SERVICE) if has_channelz else SERVICES)

    async def start(self, address: str, health_address: str | None = None) -> str:
        """Binds and serves; returns the bound address, with the port that was picked if 0 was asked for.

        Args:
            address: Where everything is served.
            health_address: Where health alone is served, in plain text; `self.health_address` is what was bound.

        Raises:
            StartupError: If an address cannot be bound.
        """
        bound = _bind("listen", self._server, address, self._credentials)
        if health_address:
            self._health_server = grpc.aio.server(options=SERVER_OPTIONS)
            health_pb2_grpc.add_HealthServicer_to_server(self._health_servicer, self._health_server)
            self.health_address = _bind("health_listen", self._health_server, health_address, None)
            await self._health_server.start()
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets open ones end within `grace_s`, then cuts them."""
        servers = [server for server in (self._server, self._health_server) if server]
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    def _add_reflection(self, services: Sequence[str]) -> None:
        servicer = ReflectionServicer(services)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._server)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": handler})
        self._server.add_generic_rpc_handlers((generic,))


def _bind(setting: str, server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Binds the address of a setting; returns it with the port that was picked if 0 was asked for."""
    host, _, _ = address.rpartition(":")
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise StartupError(f"{setting}: cannot bind {address}; is another server there?")
    return f"{host}:{port}"
