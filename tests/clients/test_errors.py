from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc import aio

import guardwire
from guardwire import AsyncClient, Client, GuardwireError
from guardwire.convert.responses import stream_error
from guardwire.errors import ErrorDetails, FieldViolation, from_rpc_error
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_server import Failure, FakeServer

BY_STATUS = {
    "CANCELLED": guardwire.Cancelled,
    "UNKNOWN": guardwire.ServerFault,
    "INVALID_ARGUMENT": guardwire.InvalidRequest,
    "DEADLINE_EXCEEDED": guardwire.DeadlineExceeded,
    "NOT_FOUND": guardwire.InvalidRequest,
    "ALREADY_EXISTS": guardwire.InvalidRequest,
    "PERMISSION_DENIED": guardwire.PermissionDenied,
    "RESOURCE_EXHAUSTED": guardwire.Overloaded,
    "FAILED_PRECONDITION": guardwire.InvalidRequest,
    "ABORTED": guardwire.StreamAborted,
    "OUT_OF_RANGE": guardwire.InvalidRequest,
    "UNIMPLEMENTED": guardwire.InvalidRequest,
    "INTERNAL": guardwire.ServerFault,
    "UNAVAILABLE": guardwire.Unavailable,
    "DATA_LOSS": guardwire.ServerFault,
    "UNAUTHENTICATED": guardwire.Unauthenticated,
}

DETAILS = (
    error_details_pb2.ErrorInfo(domain="guardwire", reason="TOO_LONG"),
    error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="messages[0].content", description="too long"),
            error_details_pb2.BadRequest.FieldViolation(field="policy", description="unknown"),
        ]
    ),
    error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    error_details_pb2.RequestInfo(request_id="r-1"),
)


def test_every_status_has_an_error() -> None:
    assert set(BY_STATUS) == {status.name for status in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize("name", BY_STATUS)
async def test_status_decides_the_class(fake: FakeServer, client: AsyncClient, name: str) -> None:
    fake.failure = Failure(grpc.StatusCode[name], "so it is")
    with pytest.raises(GuardwireError) as caught:
        await client.classify("hi")
    assert type(caught.value) is BY_STATUS[name]
    assert (caught.value.code, caught.value.message) == (grpc.StatusCode[name], "so it is")
    assert (caught.value.reason, caught.value.field, caught.value.retry_after_s) == ("", "", None)


def check_details(error: GuardwireError) -> None:
    assert (error.reason, error.field, error.retry_after_s, error.request_id) == (
        "TOO_LONG",
        "messages[0].content",
        1.5,
        "r-1",
    )
    assert [violation.field for violation in error.violations] == ["messages[0].content", "policy"]
    assert str(error) == "no"


async def test_details_become_attributes_in_every_verb(fake: FakeServer, client: AsyncClient) -> None:
    fake.failure = Failure(grpc.StatusCode.INVALID_ARGUMENT, "no", DETAILS)
    for verb in (client.classify("hi"), client.server_info(), client.tokenizer_json(), _open(client)):
        with pytest.raises(guardwire.InvalidRequest) as caught:
            await verb
        check_details(caught.value)


async def test_details_become_attributes_without_asyncio(fake: FakeServer, target: str) -> None:
    fake.failure = Failure(grpc.StatusCode.INVALID_ARGUMENT, "no", DETAILS)

    def use() -> None:
        with Client(target) as client:
            for verb in (lambda: client.classify("hi"), client.server_info, client.tokenizer_json):
                with pytest.raises(guardwire.InvalidRequest) as caught:
                    verb()
                check_details(caught.value)
            with pytest.raises(guardwire.InvalidRequest) as caught, client.moderate("hi"):
                pass
            check_details(caught.value)

    await asyncio.to_thread(use)


async def test_reasons_of_other_domains_are_not_ours(fake: FakeServer, client: AsyncClient) -> None:
    info = error_details_pb2.ErrorInfo(domain="proxy.example", reason="NO")
    fake.failure = Failure(grpc.StatusCode.UNAVAILABLE, "no", (info, DETAILS[3]))
    with pytest.raises(guardwire.Unavailable) as caught:
        await client.classify("hi")
    assert (caught.value.reason, caught.value.request_id) == ("", "r-1")


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b""])
def test_unreadable_details_are_nobodys(garbage: bytes) -> None:
    trailing = aio.Metadata(("grpc-status-details-bin", garbage))
    error = from_rpc_error(aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), trailing, details=None))
    assert type(error) is guardwire.Unavailable
    assert (error.message, error.reason) == ("UNAVAILABLE", "")


async def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("localhost", 0))
        target = f"localhost:{reserved.getsockname()[1]}"
        async with AsyncClient(target) as client:
            with pytest.raises(guardwire.Unavailable):
                await client.classify("hi")
            with pytest.raises(guardwire.Unavailable):
                await _open(client)


async def test_deadlines(fake: FakeServer, target: str) -> None:
    fake.silent = True
    async with AsyncClient(target, timeout_s=0.05) as client:
        for verb in (client.classify("hi"), client.server_info(), client.tokenizer_json(), _open(client)):
            with pytest.raises(guardwire.DeadlineExceeded):
                await verb
    async with AsyncClient(target) as client:
        with pytest.raises(guardwire.DeadlineExceeded):
            await client.classify("hi", timeout_s=0.05)
        with pytest.raises(guardwire.DeadlineExceeded):
            async with client.moderate("hi", timeout_s=0.05):
                pass


async def _open(client: AsyncClient) -> None:
    async with client.moderate("hi"):
        pass


def test_the_error_of_one_stream_among_many_tells_as_much_as_a_calls() -> None:
    full = pb.StreamError(code=8, message="full", reason="FULL", retry_delay=Duration(seconds=1, nanos=500_000_000))
    error = stream_error(full)
    assert (type(error), error.message) == (guardwire.Overloaded, "full")
    assert error.details == ErrorDetails("FULL", retry_after_s=1.5)
    lost = pb.StreamError(code=13, message="lost", reason="LOST", field="open.model", request_id="r-1")
    assert stream_error(lost).details == ErrorDetails("LOST", (FieldViolation("open.model", "lost"),), None, "r-1")
