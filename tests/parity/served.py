"""A whole server on a loopback port, inside the test's own event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from guardwire.v1 import moderation_pb2_grpc
from guardwire_server.app import Server
from guardwire_server.config import ServerConfig
from guardwire_server.served_models import Models, load_models


@dataclass(frozen=True)
class Served:
    """A running server: a stub that calls it, and the models behind it."""

    stub: "moderation_pb2_grpc.ModerationServiceAsyncStub"
    models: Models


def parity_config(
    *, stream_model: Path | None = None, gen_model: Path | None = None, **changes: object
) -> ServerConfig:
    """Settings of a server on the processor, in float32, with one thread: the models here are tiny."""
    values: dict[str, object] = {
        "stream_model": str(stream_model or "none"),
        "gen_model": str(gen_model or "none"),
        "listen": "127.0.0.1:0",
        "device": "cpu",
        "dtype": "float32",
        "num_threads": 1,
        "kv_memory_gib": 0.1,
        "drain_delay_s": 0.0,
        "grace_s": 0.0,
    }
    return ServerConfig.model_validate(values | changes)


@asynccontextmanager
async def serve(config: ServerConfig) -> AsyncIterator[Served]:
    """A server that lasts as long as the block."""
    models = load_models(config)
    server = Server(config, models)
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(moderation_pb2_grpc.ModerationServiceStub(channel), models)
    finally:
        await server.stop()
