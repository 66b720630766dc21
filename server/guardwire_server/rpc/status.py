"""Errors as gRPC statuses with `google.rpc` details: the one place that maps one to the other."""

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from guardwire_server.core import errors

ERROR_DOMAIN = "guardwire"
"""The domain of every `ErrorInfo.reason` of this server."""

STATUS_CODES: dict[type[errors.RequestError], grpc.StatusCode] = {
    errors.InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnknownName: grpc.StatusCode.NOT_FOUND,
    errors.NotServed: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.StreamTimeout: grpc.StatusCode.ABORTED,
    errors.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Abandoned: grpc.StatusCode.CANCELLED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Draining: grpc.StatusCode.UNAVAILABLE,
    errors.EngineError: grpc.StatusCode.INTERNAL,
    errors.EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
}
"""Every error that can end a call."""


def to_status(error: errors.RequestError) -> status_pb2.Status:
    """The status of an error: its reason always, and what else its kind knows."""
    details: list[message.Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if isinstance(error, errors.CallerError) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.CapacityError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.EngineError) and error.request_id:
        details.append(error_details_pb2.RequestInfo(request_id=error.request_id))
    return status_pb2.Status(
        code=code_pb2.Code.Value(STATUS_CODES[type(error)].name),
        message=error.message,
        details=[_pack(detail) for detail in details],
    )


def _pack(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
