"""Calls that end while the server writes to them: nobody is left to be told, and nothing has gone wrong."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import pytest
from grpc_status import rpc_status

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc import service
from guardwire_server.rpc.bounded_writes import BoundedWrites
from tests.rpc.bystander import Bystander
from tests.rpc.messages import opening
from tests.rpc.running_server import RunningServer

OpenCall = Callable[[RunningServer], Any]
CALLS: dict[str, tuple[OpenCall, Any]] = {
    "one stream": (lambda server: server.stub.ModerateStream(), opening()),
    "many streams": (
        lambda server: server.stub.ModerateStreams(),
        pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=1, request=opening())]),
    ),
}


async def overtaken(*_: object) -> NoReturn:
    """As a write on a call whose deadline passes between the look at its state and the write itself."""
    raise grpc.aio.InternalError('Failed "execute_batch"')


async def end_of(call: Any) -> None:  # noqa: ANN401 of either kind
    with contextlib.suppress(grpc.aio.AioRpcError):  # none where only the status was overtaken
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass


@pytest.mark.parametrize(("open_call", "request_message"), CALLS.values(), ids=CALLS.keys())
async def test_an_overtaken_response(
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    open_call: OpenCall,
    request_message: Any,  # noqa: ANN401 of either kind
) -> None:
    monkeypatch.setattr(BoundedWrites, "write", overtaken)
    call = open_call(server)
    await call.write(request_message)
    await end_of(call)
    await server.settled()
    assert not caplog.records


async def test_an_overtaken_piece_of_a_tokenizer(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(BoundedWrites, "write", overtaken)
    call = server.stub.GetTokenizer(pb.GetTokenizerRequest())
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert not caplog.records


async def test_a_status_after_an_overtaken_first_response(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """gRPC takes the metadata for not sent, sends it again with the status, and fails: no error of anybody's."""
    writes_begun: set[asyncio.Task[None]] = set()

    async def begin(writes: BoundedWrites, response: pb.GetTokenizerResponse) -> None:
        writes_begun.add(asyncio.create_task(writes._context.write(response)))
        await asyncio.sleep(0)
        await overtaken()

    monkeypatch.setattr(BoundedWrites, "write", begin)
    call = server.stub.GetTokenizer(pb.GetTokenizerRequest(), timeout=0.5)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # a status has not come
    await asyncio.gather(*writes_begun)
    assert not caplog.records


async def test_an_error_of_a_call_that_goes_on_is_logged(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object, **__: object) -> NoReturn:
        raise grpc.aio.InternalError("not about writing")

    monkeypatch.setattr(service, "server_info", failing)
    with pytest.raises(grpc.aio.AioRpcError):
        await server.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert "InternalError" in caplog.text


async def test_an_overtaken_status(
    server: RunningServer, bystander: Bystander, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def overtaken_status(_: object) -> NoReturn:
        raise grpc.aio.InternalError('Failed "execute_batch"')

    monkeypatch.setattr(rpc_status, "to_status", overtaken_status)
    call = server.stub.ModerateStream()
    await call.write(pb.ModerateStreamRequest())
    await end_of(call)
    await server.settled(num_sessions=1)
    assert not caplog.records
