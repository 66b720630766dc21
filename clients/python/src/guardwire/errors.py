"""What can go wrong, by whose fault it is.

A failed call raises the subclass of `GuardwireError` that its gRPC status names; the `google.rpc` details that the
server adds become attributes. A policy's BLOCK is a result, never an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

_DOMAIN = "guardwire"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the server refused."""

    field: str
    """The field's path in the contract, such as `messages[2].content`."""
    description: str
    """What is wrong with it, for people."""


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a server tells about an error beyond its status."""

    reason: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    request_id: str = ""


class GuardwireError(Exception):
    """A call that failed.

    Attributes:
        message: The server's message, for people.
        code: The gRPC status.
        details: The details as one object.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        details: ErrorDetails = ErrorDetails(),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details

    @property
    def reason(self) -> str:
        """The stable reason, for programs; empty when the error did not come from a Guardwire server."""
        return self.details.reason

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """All fields at fault."""
        return self.details.violations

    @property
    def field(self) -> str:
        """The path of the first field at fault; empty when none is."""
        return self.details.violations[0].field if self.details.violations else ""

    @property
    def retry_after_s(self) -> float | None:
        """After how many seconds trying again can help; None when the server does not say."""
        return self.details.retry_after_s

    @property
    def request_id(self) -> str:
        """The server's name for the call, to look for in its logs; empty when it gave none."""
        return self.details.request_id


class InvalidRequest(GuardwireError):
    """The request cannot be served as it is: trying again unchanged does not help."""


class Unauthenticated(GuardwireError):
    """The server does not know who is calling."""


class PermissionDenied(GuardwireError):
    """The server knows the caller and refuses this call."""


class Overloaded(GuardwireError):
    """The server is full: try again after `retry_after_s`."""


class Unavailable(GuardwireError):
    """The server cannot be reached or is about to stop: try again, elsewhere if possible."""


class DeadlineExceeded(GuardwireError):
    """The call took longer than its `timeout_s`."""


class Cancelled(GuardwireError):
    """The call was cancelled: its stream was left, or the server gave it up."""


class StreamLeft(Cancelled):
    """Its caller left the stream before its end, so the call was cancelled on purpose."""


class StreamAborted(GuardwireError):
    """The server cut the stream: it was idle, lasted too long, or was not read."""


class UpdatesLost(GuardwireError):
    """More updates of a stream waited than it keeps; the stream goes on, and so does iterating with the next one."""


class ServerFault(GuardwireError):
    """The server failed or broke the contract; `request_id` names the call in its logs."""


_BY_STATUS: dict[grpc.StatusCode, type[GuardwireError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.ABORTED: StreamAborted,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: InvalidRequest,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: ServerFault,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


def invalid_request(
    message: str, field: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT
) -> InvalidRequest:
    """Builds the error for a request that this client refuses before sending it."""
    return InvalidRequest(message, code, ErrorDetails(violations=(FieldViolation(field, message),)))


def broken_contract(message: str) -> ServerFault:
    """Builds the error for a response that the contract does not allow."""
    return ServerFault(message, grpc.StatusCode.INTERNAL)


def stream_left() -> StreamLeft:
    """Builds the error of a stream that its caller has left before its end."""
    return StreamLeft("the stream was left", grpc.StatusCode.CANCELLED)


def unreadable(error: Exception) -> GuardwireError:
    """What a stream fails with when reading a response raised."""
    return error if isinstance(error, GuardwireError) else broken_contract(f"unreadable: {error!r}")


def from_status(code: grpc.StatusCode, message: str, details: ErrorDetails) -> GuardwireError:
    """Builds the error that a status stands for."""
    return _BY_STATUS.get(code, GuardwireError)(message or code.name, code, details)


def from_rpc_error(error: grpc.RpcError) -> GuardwireError:
    """Translates what grpc raises, in its asyncio form and in the other one."""
    call: Any = error  # both forms have code(), details() and trailing_metadata(); their stubs do not agree
    return from_status(call.code() or grpc.StatusCode.UNKNOWN, call.details(), _read_details(call))


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turns every grpc error of the block into a `GuardwireError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _read_details(call: Any) -> ErrorDetails:  # noqa: ANN401
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # details that contradict the status are nobody's details
        return ErrorDetails()
    reason, request_id, retry_after_s = "", "", None
    violations: list[FieldViolation] = []
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            reason = info.reason
        elif detail.Unpack(bad):
            violations.extend(FieldViolation(v.field, v.description) for v in bad.field_violations)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(request):
            request_id = request.request_id
    return ErrorDetails(reason, tuple(violations), retry_after_s, request_id)
