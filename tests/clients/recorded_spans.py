"""What traced clients leave behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

SERVICE = "guardwire.v1.ModerationService"


class RecordedSpans(SpanProcessor):
    """The spans of one provider. It counts how often each began and ended; an end too many would not be exported."""

    def __init__(self) -> None:
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer("test")
        self.open: Counter[int] = Counter()
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(self)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.open[span_id(span)] += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.open[span_id(span)] -= 1

    def named(self, name: str) -> list[ReadableSpan]:
        """Those that have ended, by name; the names of calls are given without their service."""
        return [span for span in self.ended() if (span.name or "").removeprefix(f"{SERVICE}/") == name]

    def ended(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def only(self) -> ReadableSpan:
        (span,) = self.ended()
        return span


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes(span: ReadableSpan, *left_out: str) -> dict[str, Any]:
    """A span's attributes, but for the address of the server."""
    hidden = {"server.address", "server.port", *left_out}
    return {key: value for key, value in (span.attributes or {}).items() if key not in hidden}


def outcome(span: ReadableSpan) -> tuple[str | None, str | None]:
    """The status of the call and the kind of error; a span says that it failed if and only if there is one."""
    told = span.attributes or {}
    error_type = told.get("error.type")
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert not span.status.description  # it would be the message, which may quote text
    assert not span.events
    status = told.get("rpc.response.status_code")
    assert isinstance(status, str | None)
    assert isinstance(error_type, str | None)
    return status, error_type
