"""The spans of a client's calls, by OpenTelemetry's conventions for RPC (release candidate).

The only module that imports OpenTelemetry. A span never holds text or token ids, and so no message of an error either,
which may quote them. A call that its caller gave up is CANCELLED and no error, whatever the caller's reason: the stream
was left, its task was cancelled, or the block around it raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, TracerProvider

from guardwire.errors import GuardwireError, StreamLeft
from guardwire.server_address import server_address
from guardwire.stream_protocol import StreamProtocol
from guardwire.tracing import CallMetadata, CallSpan, StreamSpan
from guardwire.v1 import moderation_pb2 as pb

SCOPE = "guardwire"
SERVICE = pb.DESCRIPTOR.services_by_name["ModerationService"].full_name
STREAM_SPAN = "guardwire.stream"
"""One of the streams that share a call: a part of what this process does, since the call has a span of its own."""

RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
ACTION = "guardwire.action"  # allow, flag or block
NUM_TOKENS = "guardwire.num_tokens"  # pushed, with those rolled back; not told of text streams
NUM_VERDICTS = "guardwire.num_verdicts"  # received, on tokens
REASON = "guardwire.reason"  # ErrorInfo.reason, in lower case
REQUEST_ID = "guardwire.request_id"
SESSION_ID = "guardwire.session.id"
STREAM_COUNT = "guardwire.stream.count"  # streams of one ModerateStreams call

Attributes = dict[str, str | int]


class CallSpans:
    """Begins the spans of one client's calls. It never changes, so the client's threads share it."""

    def __init__(self, target: str, metadata: CallMetadata, tracer_provider: TracerProvider | None) -> None:
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._metadata = metadata
        self._own_keys = frozenset(key.lower() for key, _ in metadata)
        address, port = server_address(target)
        self._attributes: Attributes = {RPC_SYSTEM: "grpc", SERVER_ADDRESS: address}
        if port is not None:
            self._attributes[SERVER_PORT] = port

    def begin(self, method: str) -> CallSpan:
        """Begins the span of a call, as a child of the caller's."""
        name = f"{SERVICE}/{method}"
        attributes = {**self._attributes, RPC_METHOD: name}
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))
        # gRPC takes lower case alone; what the caller sets stays the only value of its key.
        added = ((key.lower(), value) for key, value in carrier.items() if key.lower() not in self._own_keys)
        return _CallSpan(self._tracer, span, (*self._metadata, *added))


class _CallSpan:
    """The span of a call. Owner: the call; one thread at a time uses it."""

    def __init__(self, tracer: Tracer, span: Span, metadata: CallMetadata) -> None:
        self.metadata = metadata
        self._tracer = tracer
        self._span = span
        self._totals: Counter[str] = Counter()  # of the streams that shared it

    def begin_stream(self) -> StreamSpan:
        """Begins a stream's span: the caller's child, with a link to the call; the call's child if nobody traces."""
        if trace.get_current_span().get_span_context().is_valid:
            links = [Link(self._span.get_span_context())]
            return _SharingSpan(self._tracer.start_span(STREAM_SPAN, links=links), self._totals)
        call = trace.set_span_in_context(self._span)
        return _SharingSpan(self._tracer.start_span(STREAM_SPAN, call), self._totals)

    def end(self, failure: BaseException | None, stream: StreamProtocol | None = None) -> None:
        """Ends it, with what its stream knows or the totals of those that shared it."""
        _end(self._span, failure, self._totals if stream is None else _stream_attributes(stream))


class _SharingSpan:
    """The span of a stream that shares its call, and adds to the call's totals. Owner: the stream."""

    def __init__(self, span: Span, totals: Counter[str]) -> None:
        self._span = span
        self._totals = totals

    def end(self, failure: BaseException | None, stream: StreamProtocol | None = None) -> None:
        """Ends it, and counts the stream."""
        attributes = {} if stream is None else _stream_attributes(stream)
        self._totals[STREAM_COUNT] += 1
        for key in attributes.keys() & {NUM_TOKENS, NUM_VERDICTS}:
            self._totals[key] += int(attributes[key])
        _end(self._span, failure, attributes)


def _end(span: Span, failure: BaseException | None, attributes: Mapping[str, str | int]) -> None:
    if not span.is_recording():  # it has ended, or was not sampled
        return
    status, error_type = _outcome(failure)
    span.set_attributes(attributes)
    if status:
        span.set_attribute(RPC_STATUS, status)
    if error_type:
        span.set_attribute(ERROR_TYPE, error_type)
        span.set_status(StatusCode.ERROR)
    if isinstance(failure, GuardwireError):
        if failure.reason:
            span.set_attribute(REASON, failure.reason.lower())
        if failure.request_id:
            span.set_attribute(REQUEST_ID, failure.request_id)
    span.end()


def _outcome(failure: BaseException | None) -> tuple[str, str]:
    """The status and the kind of error; either is empty where there is none."""
    match failure:
        case None:
            return "OK", ""
        case StreamLeft():
            return "CANCELLED", ""
        case GuardwireError():
            return failure.code.name, failure.code.name
        case Exception():  # the call could not be sent, so it has no status
            return "", _class_name(type(failure))
        case _:  # the caller's task is cancelled, or its program stops
            return "CANCELLED", ""


def _class_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _stream_attributes(stream: StreamProtocol) -> Attributes:
    attributes: Attributes = {NUM_VERDICTS: stream.num_verdicts}
    if stream.num_pushed is not None:
        attributes[NUM_TOKENS] = stream.num_pushed
    if stream.opened is not None:
        attributes[SESSION_ID] = stream.opened.session_id
    if stream.summary is not None and stream.summary.action is not None:
        attributes[ACTION] = stream.summary.action.name.lower()
    elif stream.decision is not None:
        attributes[ACTION] = stream.decision.action.name.lower()
    return attributes
