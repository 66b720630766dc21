"""The table of errors: every error that can end a call has its status, and the details that its kind knows."""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core import errors
from guardwire_server.rpc.responses import stream_error
from guardwire_server.rpc.status import ERROR_DOMAIN, STATUS_CODES, to_status


def leaves(kind: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    """The classes below one that have none below them."""
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from leaves(child)


LEAVES = sorted(leaves(errors.RequestError), key=lambda kind: kind.__name__)


def example(kind: type[errors.RequestError], field: str = "tokens.token_ids[3]") -> errors.RequestError:
    if issubclass(kind, errors.CallerError):
        return kind("REASON", field, "the limit is 4")
    if issubclass(kind, errors.CapacityError):
        return kind("REASON", "the limit is 4", retry_after_s=1.25)
    if issubclass(kind, errors.EngineError):
        return kind("REASON", "the limit is 4", "0123abcd")
    return kind("REASON", "the limit is 4")


def details(error: errors.RequestError) -> dict[str, Message]:
    unpacked: dict[str, Message] = {}
    for detail in to_status(error).details:
        kind = getattr(error_details_pb2, detail.TypeName().removeprefix("google.rpc."))
        message = kind()
        assert detail.Unpack(message)
        unpacked[kind.__name__] = message
    return unpacked


def test_table_is_total() -> None:
    assert set(STATUS_CODES) == {*LEAVES, errors.EngineError}  # the latter is raised itself, too


@pytest.mark.parametrize("kind", STATUS_CODES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_a_reason(kind: type[errors.RequestError]) -> None:
    error = example(kind)
    status = to_status(error)
    assert code_pb2.Code.Name(status.code) == STATUS_CODES[kind].name
    assert status.code not in (grpc.StatusCode.OK.value[0], grpc.StatusCode.UNKNOWN.value[0])
    assert status.message == error.message
    info = details(error)["ErrorInfo"]
    assert info == error_details_pb2.ErrorInfo(reason="REASON", domain=ERROR_DOMAIN)


def test_who_is_not_known_and_who_may_not_are_told_apart() -> None:
    assert to_status(example(errors.Unauthenticated, "")).code == code_pb2.UNAUTHENTICATED
    assert to_status(example(errors.PermissionDenied, "")).code == code_pb2.PERMISSION_DENIED


@pytest.mark.parametrize("kind", [kind for kind in LEAVES if issubclass(kind, errors.CallerError)])
def test_caller_errors_name_the_field(kind: type[errors.CallerError]) -> None:
    (violation,) = details(example(kind))["BadRequest"].field_violations  # type: ignore[attr-defined]
    assert violation.field == "tokens.token_ids[3]"
    assert violation.reason == "REASON"
    assert violation.description == "tokens.token_ids[3]: the limit is 4"
    assert set(details(example(kind, field=""))) == {"ErrorInfo"}


@pytest.mark.parametrize("kind", [kind for kind in LEAVES if issubclass(kind, errors.CapacityError)])
def test_capacity_errors_say_when_to_try_again(kind: type[errors.CapacityError]) -> None:
    retry_delay = details(example(kind))["RetryInfo"].retry_delay  # type: ignore[attr-defined]
    assert retry_delay.ToTimedelta().total_seconds() == 1.25


@pytest.mark.parametrize("kind", [errors.EngineError, errors.EngineUnavailable])
def test_engine_errors_name_the_request(kind: type[errors.EngineError]) -> None:
    assert details(example(kind))["RequestInfo"] == error_details_pb2.RequestInfo(request_id="0123abcd")
    assert set(details(kind("REASON", "lost"))) == {"ErrorInfo"}


@pytest.mark.parametrize("kind", STATUS_CODES, ids=lambda kind: kind.__name__)
def test_one_stream_of_many_is_told_what_a_call_of_its_own_is(kind: type[errors.RequestError]) -> None:
    error = example(kind)
    status, told = to_status(error), details(error)
    expected = pb.StreamError(code=status.code, message=status.message, reason="REASON")
    if "BadRequest" in told:
        expected.field = told["BadRequest"].field_violations[0].field  # type: ignore[attr-defined]
    if "RetryInfo" in told:
        expected.retry_delay.CopyFrom(told["RetryInfo"].retry_delay)  # type: ignore[attr-defined]
    if "RequestInfo" in told:
        expected.request_id = told["RequestInfo"].request_id  # type: ignore[attr-defined]
    assert stream_error(error) == expected
