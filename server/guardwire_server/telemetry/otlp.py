"""OpenTelemetry's exporters for OTLP over gRPC, made quiet: an outage is logged when it begins and when it ends.

The exporters themselves write a line for every attempt. Their lines are kept from the log while they export for us, and
the last of them is the cause that we give.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any, TypeVar

from opentelemetry.exporter.otlp.proto.grpc import exporter as grpc_exporter
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT", bound=Enum)


class _LastWords(logging.Filter):
    """Keeps back what the exporters log on threads that listen for it, and remembers the last of it."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.local()

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[str]]:
        """For the length of the block; the list that it gives holds the last message, if there was one."""
        self._thread.messages = messages = list[str]()
        try:
            yield messages
        finally:
            del self._thread.messages

    def filter(self, record: logging.LogRecord) -> bool:
        messages: list[str] | None = getattr(self._thread, "messages", None)
        if messages is None:
            return True
        messages[:] = [record.getMessage()]
        return False


_last_words = _LastWords()
# Before the library's own filter, which drops what it has just logged for another exporter.
logging.getLogger(grpc_exporter.__name__).filters.insert(0, _last_words)


class Outage:
    """Whether exporting a signal fails at present. Owner: its exporter, which exports on one thread at a time."""

    def __init__(self, signal: str) -> None:
        self._signal = signal
        self._is_present = False
        self.is_given_up = False
        """Set from any thread when the exporter is shut down: what it raises from then on is of no interest."""

    def watch(self, export: Callable[[], ResultT], failure: ResultT) -> ResultT:
        """Exports, and logs if that begins or ceases to fail."""
        with _last_words.listening() as messages:
            try:
                result = export()
            except Exception as error:  # a call on a channel that is being closed raises whatever it likes
                if not self.is_given_up:
                    raise
                result, messages[:] = failure, [repr(error)]
        has_failed = result is failure
        if has_failed and not self._is_present:
            cause = messages[0] if messages else "no cause given"
            logger.warning("%s are not exported, which is said once until they are again: %s", self._signal, cause)
        if self._is_present and not has_failed:
            logger.info("%s are exported again", self._signal)
        self._is_present = has_failed
        return result


class _EndsOnce:
    """Lets `shutdown` be called by the SDK and by us, to give up what is under way; from any thread."""

    _outage: Outage

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:  # noqa: ANN401 readers pass `timeout`
        if not self._outage.is_given_up:
            self._outage.is_given_up = True
            super().shutdown(timeout_millis=timeout_millis)  # type: ignore[misc]  # of the exporter beside it


class SpanExporter(_EndsOnce, OTLPSpanExporter):
    """Sends spans."""

    def __init__(self, endpoint: str) -> None:
        self._outage = Outage("traces")
        super().__init__(endpoint=endpoint)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch; blocks for at most OTEL_EXPORTER_OTLP_TIMEOUT, 10 s by default."""
        export = super().export
        return self._outage.watch(lambda: export(spans), SpanExportResult.FAILURE)


class MetricExporter(_EndsOnce, OTLPMetricExporter):
    """Sends metrics."""

    def __init__(self, endpoint: str) -> None:
        self._outage = Outage("metrics")
        super().__init__(endpoint=endpoint)

    def export(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,
        **_: Any,  # noqa: ANN401 the SDK's signature
    ) -> MetricExportResult:
        """Sends what was collected; blocks like `SpanExporter.export`."""
        export = super().export
        return self._outage.watch(lambda: export(metrics_data, timeout_millis), MetricExportResult.FAILURE)


class LogExporter(_EndsOnce, OTLPLogExporter):
    """Sends log records."""

    def __init__(self, endpoint: str) -> None:
        self._outage = Outage("logs")
        super().__init__(endpoint=endpoint)

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Sends a batch; blocks like `SpanExporter.export`."""
        export = super().export
        return self._outage.watch(lambda: export(batch), LogRecordExportResult.FAILURE)
