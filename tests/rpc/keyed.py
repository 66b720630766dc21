"""Callers with a credential."""

import asyncio
import copy
from functools import partial
from typing import Any

import grpc

from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S, Failure, FirstStatus

Metadata = tuple[tuple[str, str], ...]


def bearer(credential: str) -> Metadata:
    """What goes with a call that shows a key or token."""
    return (("authorization", f"Bearer {credential}"),)


def caller(server: RunningServer, credential: str) -> RunningServer:
    """The same server as somebody sees it who shows that key or token with every call."""
    seen = copy.copy(server)
    seen.stub = _KeyedStub(server.channel, server.stub, bearer(credential))  # type: ignore[assignment]
    return seen


async def outcome(channel: grpc.aio.Channel, method: str, metadata: Metadata, *requests: bytes) -> Failure | None:
    """How a call ends that sends these requests, whatever they are, and its end; None: in good order."""
    call: Any = channel.stream_stream(method)(metadata=metadata, timeout=WAIT_S)
    status = FirstStatus(call)
    try:
        for request in requests:
            await call.write(request)
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the status tells all
    await call.code()  # it is over
    assert status.error
    return None if status.error.code() is grpc.StatusCode.OK else Failure.of(status.error)


class _KeyedStub:
    """A stub whose calls carry metadata."""

    def __init__(self, channel: grpc.aio.Channel, stub: object, metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401 a method of the stub
        return partial(getattr(self._stub, method), metadata=self._metadata)
