"""Calls of grpc.health.v1 as the tests make them."""

import asyncio
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Watch:
    """A Watch call."""

    def __init__(self, server: RunningServer, service: str = "") -> None:
        stub = health_pb2_grpc.HealthStub(server.channel)
        self._call: Any = stub.Watch(health_pb2.HealthCheckRequest(service=service))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def next_status(self) -> int:
        response = await asyncio.wait_for(self._call.read(), WAIT_S)
        assert response is not grpc.aio.EOF
        return int(response.status)

    async def code(self) -> grpc.StatusCode:
        """How the call ends."""
        code: grpc.StatusCode = await asyncio.wait_for(self._call.code(), WAIT_S)
        return code


async def check(server: RunningServer, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
    return int(response.status)
