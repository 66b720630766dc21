"""Where telemetry goes: OTLP by gRPC to a collector, and a page for Prometheus.

Theory of operation. Everything that measures gets one of three providers when it is made; no provider of the process
is set, since tests run several servers in one. What no setting asks for is a provider that does nothing. Spans and log
records wait in bounded queues (2,048 each, OTEL_BSP_* and OTEL_BLRP_* change it) for a thread of their own that sends
them; metrics are added up in place and sent by another every `metrics_interval_s`. A collector that is away therefore
costs what it should have got and nothing else, and is logged once when it fails and once when it is back.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opentelemetry import _logs as logs_api
from opentelemetry import metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from guardwire_server.core.errors import StartupError
from guardwire_server.telemetry.log_export import OtlpLogHandler
from guardwire_server.telemetry.otlp import LogExporter, MetricExporter, SpanExporter
from guardwire_server.telemetry.prometheus import MetricsPage
from guardwire_server.telemetry.sampling import make_sampler

logger = logging.getLogger(__name__)

SERVICE_NAME = "guardwire"

ABORT_S = 1.0
"""How long exports that were given up may take to notice."""


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """What `ServerConfig` says about telemetry, under the same names, and the version to report."""

    version: str
    otlp_endpoint: str | None = None
    metrics_listen: str | None = None
    metrics_interval_s: float = 10.0
    trace_ratio: float = 1.0


class Telemetry:
    """Owner of the providers, of the threads that export, and of the page for Prometheus. Owner of it: `serve`.

    `start` is called once, and `shutdown` after it, a second time for nothing. Instruments, tracers and loggers may be
    made before; what they are given before `start` and after `shutdown` is lost. Callbacks of observable instruments
    run on the threads that export.
    """

    def __init__(self, settings: TelemetrySettings) -> None:
        """Makes the providers; starts nothing."""
        self._settings = settings
        self._page = MetricsPage(settings.metrics_listen) if settings.metrics_listen else None
        self._log_handler: OtlpLogHandler | None = None
        self._exporters: list[SpanExporter | MetricExporter | LogExporter] = []
        self._flushes: list[Callable[[], None]] = []
        self._tracers: TracerProvider | None = None
        self._meters: MeterProvider | None = None
        self._loggers: LoggerProvider | None = None
        resource = _resource(settings.version)
        if settings.otlp_endpoint:
            sampler = make_sampler(settings.trace_ratio)
            self._tracers = TracerProvider(sampler, resource, shutdown_on_exit=False)
            self._loggers = LoggerProvider(resource, shutdown_on_exit=False)
        if settings.otlp_endpoint or settings.metrics_listen:
            self._meters = MeterProvider(resource=resource, shutdown_on_exit=False)
        self.metrics_address: str | None = None
        """Where the page for Prometheus is, once it is started; None without `metrics_listen`."""

    @property
    def tracer_provider(self) -> trace.TracerProvider:
        """Where tracers come from."""
        return self._tracers or trace.NoOpTracerProvider()

    @property
    def meter_provider(self) -> metrics.MeterProvider:
        """Where meters come from."""
        return self._meters or metrics.NoOpMeterProvider()

    @property
    def logger_provider(self) -> logs_api.LoggerProvider:
        """Where loggers for events come from."""
        return self._loggers or logs_api.NoOpLoggerProvider()

    def start(self) -> None:
        """Begins to export, what this process logs included.

        Raises:
            StartupError: If `metrics_listen` cannot be bound, or a variable of OpenTelemetry's cannot be read; then
                nothing is left running.
        """
        if self._page and self._meters:
            self.metrics_address = self._page.start()
            self._meters.add_metric_reader(self._page.reader)
        if self._settings.otlp_endpoint:
            try:
                self._start_export(self._settings.otlp_endpoint)
            except Exception as error:  # of many kinds: the SDK reads some twenty variables, each in its own way
                self.shutdown(0)
                raise StartupError(f"otlp_endpoint: the export cannot be set up: {error}") from None

    def shutdown(self, timeout_s: float) -> None:
        """Sends what is pending and ends every thread; what is not gone after `timeout_s` is lost.

        Blocks, so call it beside the event loop. Raises nothing, and is over a second after `timeout_s` at the latest.
        """
        if self._log_handler:
            logging.getLogger().removeHandler(self._log_handler)
        flushes, self._flushes = self._flushes, []
        threads = [threading.Thread(target=_run, args=(flush,), daemon=True) for flush in flushes]
        for thread in threads:
            thread.start()
        if not _join(threads, timeout_s):
            logger.warning("telemetry: not all that was pending could be exported within %g s", timeout_s)
            for exporter in self._exporters:
                exporter.shutdown()
            _join(threads, ABORT_S)
        if self._page:
            self._page.close()

    def _start_export(self, endpoint: str) -> None:
        assert self._tracers
        assert self._meters
        assert self._loggers
        spans, log_records, metric_data = SpanExporter(endpoint), LogExporter(endpoint), MetricExporter(endpoint)
        self._exporters = [spans, log_records, metric_data]
        self._tracers.add_span_processor(BatchSpanProcessor(spans, meter_provider=self._meters))
        self._flushes.append(self._tracers.shutdown)
        self._loggers.add_log_record_processor(BatchLogRecordProcessor(log_records, meter_provider=self._meters))
        self._flushes.append(self._loggers.shutdown)
        # A reader that comes late is not shut down by its provider.
        reader = PeriodicExportingMetricReader(metric_data, self._settings.metrics_interval_s * 1000)
        self._meters.add_metric_reader(reader)
        self._flushes.append(reader.shutdown)
        self._log_handler = OtlpLogHandler(self._loggers)
        logging.getLogger().addHandler(self._log_handler)


def _resource(version: str) -> Resource:
    """What this process is; OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME override it."""
    own = {"service.name": SERVICE_NAME, "service.version": version, "service.instance.id": str(uuid.uuid4())}
    return Resource.create(own).merge(OTELResourceDetector().detect())


def _run(flush: Callable[[], None]) -> None:
    try:
        flush()
    except Exception:
        logger.exception("telemetry: what was pending could not be exported")


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> bool:
    """Waits for threads to end; whether all have."""
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
