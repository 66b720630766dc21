"""One ModerateStream call as a test conducts it, and what came of it."""

import asyncio
from collections.abc import Coroutine, Sized
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.messages import finish

WAIT_S = 20.0
"""How long anything may take before a test fails; nothing waits this long otherwise."""


@dataclass(frozen=True)
class TokenVerdict:
    """One token's entry in the packed arrays."""

    index: int
    risk_level: int
    category: int
    probabilities: tuple[float, float, float]
    category_probability: float
    is_scaffold: bool
    text_end_offset: int | None


@dataclass(frozen=True)
class Failure:
    """How a call failed: its status and what the details say."""

    code: grpc.StatusCode
    reason: str
    field: str
    message: str
    retry_after_s: float | None
    request_id: str

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Self:
        """Reads a status; one that the server did not write has no reason."""
        info, violation = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest.FieldViolation()
        retry_after_s, request = None, error_details_pb2.RequestInfo()
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Unpack(bad_request):
                (violation,) = bad_request.field_violations
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
            elif not detail.Unpack(info):
                assert detail.Unpack(request)
        assert violation.reason in ("", info.reason)
        return cls(error.code(), info.reason, violation.field, error.details() or "", retry_after_s, request.request_id)


@dataclass
class Received:
    """What a caller was told, by kind and in order."""

    opened: pb.StreamOpened | None = None
    prompt_verdicts: list[pb.PromptVerdict] = field(default_factory=list)
    verdicts: list[TokenVerdict] = field(default_factory=list)
    decisions: list[pb.Decision] = field(default_factory=list)
    rolled_back: list[pb.RolledBack] = field(default_factory=list)
    draining: list[pb.Draining] = field(default_factory=list)
    summary: pb.Summary | None = None
    kinds: list[str] = field(default_factory=list)

    def take(self, response: pb.ModerateStreamResponse) -> None:
        kind = response.WhichOneof("response")
        assert kind is not None
        self.kinds.append(kind)
        match kind:
            case "opened":
                self.opened = response.opened
            case "prompt_verdict":
                self.prompt_verdicts.append(response.prompt_verdict)
            case "verdicts":
                self.verdicts += unpack(response.verdicts)
            case "decision":
                self.decisions.append(response.decision)
            case "rolled_back":
                self.rolled_back.append(response.rolled_back)
            case "draining":
                self.draining.append(response.draining)
            case "summary":
                self.summary = response.summary


T = TypeVar("T")
Call = grpc.aio.StreamStreamCall[pb.ModerateStreamRequest, pb.ModerateStreamResponse]


class FirstStatus:
    """The status that a call ended with, once it has; `error` is None until then.

    A write that races with the server's end of the call makes grpc.aio replace the server's status by an INTERNAL of
    its own (https://github.com/grpc/grpc/issues/36066): the status that counts is the first other one.
    """

    def __init__(self, call: grpc.aio.Call) -> None:
        self.error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._remember)

    def _remember(self, call: grpc.aio.Call) -> None:
        """Called when the call has got a status, so that there is nothing to wait for."""
        status = grpc.aio.AioRpcError(
            _settled(call.code()),
            _settled(call.initial_metadata()),
            _settled(call.trailing_metadata()),
            _settled(call.details()),
        )
        is_failed_write = status.code() is grpc.StatusCode.INTERNAL and status.details() == "Internal error from Core"
        if self.error is None and not is_failed_write:
            self.error = status


class StreamCall:
    """A call; `async with` cancels it at the end if it is still open."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._status = FirstStatus(call)
        self._responses = call.__aiter__()
        self.received = Received()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()

    async def send(self, *requests: pb.ModerateStreamRequest) -> None:
        """Sends requests; those that come after the call's end are dropped, and reading tells why it ended."""
        for request in requests:
            try:
                await asyncio.wait_for(self._call.write(request), WAIT_S)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def half_close(self) -> None:
        await self._call.done_writing()

    def cancel(self) -> None:
        self._call.cancel()

    async def read(self) -> str | None:
        """Takes the next response; returns its kind, or None at the call's good end.

        Raises:
            grpc.aio.AioRpcError: At any other end.
        """
        try:
            response = await asyncio.wait_for(anext(self._responses), WAIT_S)
        except (StopAsyncIteration, grpc.aio.AioRpcError) as end:
            status = self._status.error or end
            if isinstance(status, grpc.aio.AioRpcError) and status.code() is not grpc.StatusCode.OK:
                raise status from None
            return None
        self.received.take(response)
        return self.received.kinds[-1]

    async def read_until(self, kind: str) -> Received:
        """Reads until a response of that kind."""
        while (read := await self.read()) != kind:
            assert read is not None, f"the stream ended before {kind}: {self.received.kinds}"
        return self.received

    async def read_verdicts(self, num_verdicts: int) -> list[TokenVerdict]:
        """Reads until that many token verdicts came in all."""
        while len(self.received.verdicts) < num_verdicts:
            assert await self.read() is not None
        return self.received.verdicts

    async def read_all(self) -> Received:
        """Reads until the call's good end."""
        while await self.read() is not None:
            pass
        return self.received

    async def failure(self) -> Failure:
        """Reads until the call fails; returns how."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.read_all()
        return Failure.of(raised.value)

    async def run(self, *requests: pb.ModerateStreamRequest) -> Received:
        """Sends requests and `finish`, and reads to the end."""
        await self.send(*requests, finish())
        return await self.read_all()


def _settled(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not have to wait."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    result: T = stopped.value.value
    return result


def unpack(verdicts: pb.Verdicts) -> list[TokenVerdict]:
    """The packed arrays as one entry a token; checks that all have one length."""
    num_tokens = len(verdicts.risk_levels)
    packed: tuple[Sized, ...] = (
        verdicts.safe_probabilities,
        verdicts.controversial_probabilities,
        verdicts.unsafe_probabilities,
        verdicts.categories,
        verdicts.category_probabilities,
    )
    assert num_tokens
    assert [len(array) for array in packed] == [num_tokens] * len(packed)
    assert len(verdicts.text_end_offsets) in (0, num_tokens)
    assert len(verdicts.scaffold) in (0, num_tokens)
    return [
        TokenVerdict(
            index=verdicts.start_index + offset,
            risk_level=verdicts.risk_levels[offset],
            category=verdicts.categories[offset],
            probabilities=(
                verdicts.safe_probabilities[offset],
                verdicts.controversial_probabilities[offset],
                verdicts.unsafe_probabilities[offset],
            ),
            category_probability=verdicts.category_probabilities[offset],
            is_scaffold=bool(verdicts.scaffold) and verdicts.scaffold[offset],
            text_end_offset=verdicts.text_end_offsets[offset] if verdicts.text_end_offsets else None,
        )
        for offset in range(num_tokens)
    ]


def assert_same_verdicts(found: list[TokenVerdict], expected: list[TokenVerdict]) -> None:
    """Labels are equal, probabilities to 1e-4."""
    labels = [(verdict.index, verdict.risk_level, verdict.category, verdict.is_scaffold) for verdict in found]
    assert labels == [
        (verdict.index, verdict.risk_level, verdict.category, verdict.is_scaffold) for verdict in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert one.category_probability == pytest.approx(other.category_probability, abs=1e-4)


def assert_same_prompt_verdict(found: pb.PromptVerdict, expected: pb.PromptVerdict) -> None:
    """As `assert_same_verdicts`, for a prompt."""
    assert (found.risk_level, found.category) == (expected.risk_level, expected.category)
    for name in ("safe", "controversial", "unsafe"):
        assert getattr(found.probabilities, name) == pytest.approx(getattr(expected.probabilities, name), abs=1e-4)
