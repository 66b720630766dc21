"""Calls as telemetry: a span of kind SERVER each, and how long they took.

Source: the RPC conventions of OpenTelemetry (release candidate), for spans and for `rpc.server.call.duration`.
"""

import time
from collections.abc import Callable, Sequence
from contextvars import Token

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from guardwire_server.core.errors import CallerError, CapacityError, EngineError, EngineUnavailable, RequestError
from guardwire_server.telemetry import names
from guardwire_server.telemetry.instruments import Instruments, of_tenant

RPC_SYSTEM_GRPC = "grpc"

SERVER_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""The status codes that make a SERVER span an error; with the others the caller got what it asked for."""

Metadata = Sequence[tuple[str, str | bytes]]
"""What a call came with, as gRPC gives it."""


class _MetadataGetter(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        values = [value for name, value in carrier if name == key.lower() and isinstance(value, str)]
        return values or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name for name, _ in carrier]


_GETTER = _MetadataGetter()
_PROPAGATOR = TraceContextTextMapPropagator()  # baggage is not for us: nothing is called from here


class Call:
    """One call that is being served. Owner and thread: the call's task, which calls `enter` and `end` once each."""

    def __init__(self, telemetry: "CallTelemetry", method: str, parent: Context) -> None:
        self._telemetry = telemetry
        self._method = method
        self._started_s = telemetry.clock()
        self._span = telemetry.tracer.start_span(
            method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={names.RPC_SYSTEM: RPC_SYSTEM_GRPC, names.RPC_METHOD: method},
        )
        self._context = trace.set_span_in_context(self._span, parent)
        self._token: Token[Context] | None = None

    def enter(self) -> None:
        """Makes it the present call, for this task and those that it begins."""
        self._token = context_api.attach(self._context)

    def end(self, code: str) -> None:
        """Ends it with the name of a gRPC status code."""
        if self._token is not None:
            context_api.detach(self._token)
        attributes = {names.RPC_SYSTEM: RPC_SYSTEM_GRPC, names.RPC_METHOD: self._method, names.RPC_STATUS: code}
        if code in SERVER_FAULTS:
            attributes[names.ERROR_TYPE] = code
        self._telemetry.duration.record(self._telemetry.clock() - self._started_s, attributes, self._context)
        if self._span.is_recording():
            self._span.set_attribute(names.RPC_STATUS, code)
            if code in SERVER_FAULTS:
                self._span.set_attribute(names.ERROR_TYPE, code)
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class CallTelemetry:
    """Records calls. Thread: the event loop."""

    def __init__(self, instruments: Instruments, tracer: Tracer, clock: Callable[[], float] = time.monotonic) -> None:
        self.tracer = tracer
        self.clock = clock
        self.duration = instruments.histogram(names.CALL_DURATION)
        self._rejections = instruments.counter(names.REJECTIONS)

    def begin(self, method: str, metadata: Metadata) -> Call:
        """Begins a call of `package.Service/Method`, within the trace that its caller names, if it does."""
        return Call(self, method, _PROPAGATOR.extract(metadata, Context(), _GETTER))

    def rejected(self, error: RequestError, tenant: str) -> None:
        """Counts an error that ends a call or stream, if it is a refusal: of what was asked, who asked, or when."""
        if isinstance(error, (CallerError, CapacityError, EngineUnavailable)):
            self._rejections.add(1, {names.REASON: error.reason.lower()} | of_tenant(tenant))

    def failed(self, error: RequestError, tenant: str) -> None:
        """Notes the error that ends the call of the present context."""
        self.rejected(error, tenant)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute(names.REASON, error.reason.lower())
            if isinstance(error, EngineError) and error.request_id:
                span.set_attribute(names.REQUEST_ID, error.request_id)
