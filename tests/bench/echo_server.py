"""`python -m tests.bench.echo_server`: what grpc.aio can carry at most, with this server's messages and options.

Every ModerateStreamRequest is answered with the same verdict on one token. Reading and writing a message is paid, and
nothing else.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.ready_file import claim_ready_file
from guardwire_server.rpc.server import MODERATION_SERVICE, SERVER_OPTIONS

RESPONSE = pb.ModerateStreamResponse(
    verdicts=pb.Verdicts(
        start_index=100,
        risk_levels=[pb.RISK_LEVEL_SAFE],
        safe_probabilities=[1.0],
        controversial_probabilities=[0.0],
        unsafe_probabilities=[0.0],
        categories=[pb.CATEGORY_UNSPECIFIED],
        category_probabilities=[0.0],
    )
)
"""As large as the server's answer to a token."""


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def echo(requests: AsyncIterator[pb.ModerateStreamRequest], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Answers a call until the caller's side ends; writes through the context, as the server does."""
    async for _ in requests:
        await context.write(RESPONSE)


async def serve(address: str, ready_file: Path) -> None:
    """Serves until SIGTERM; the ready file holds the address meanwhile."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(
        echo,
        request_deserializer=pb.ModerateStreamRequest.FromString,
        response_serializer=pb.ModerateStreamResponse.SerializeToString,
    )
    generic = grpc.method_handlers_generic_handler(MODERATION_SERVICE, {"ModerateStream": handler})
    server.add_generic_rpc_handlers((generic,))
    host, _, _ = address.rpartition(":")
    with claim_ready_file(ready_file) as write_ready_file:
        port = server.add_insecure_port(address)
        await server.start()
        write_ready_file(f"{host}:{port}")
        await stopped.wait()
    await server.stop(None)


def main() -> int:
    """Takes those flags of `guardwire-server serve` that concern where it serves."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.echo_server", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", required=True)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--loop", choices=LOOPS, default="asyncio", help="which event loop (default: asyncio's own)")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=LOOPS[options.loop]) as runner:
        runner.run(serve(options.listen, options.ready_file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
