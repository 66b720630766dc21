"""Providers: what is asked for is exported, what is not costs nothing, and no collector can hold anything up."""

import asyncio
import gc
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry import _logs as logs_api
from opentelemetry import metrics, trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from guardwire_server.core.errors import StartupError
from guardwire_server.telemetry.names import STEP_SPAN
from guardwire_server.telemetry.otlp import SpanExporter
from guardwire_server.telemetry.providers import ABORT_S, Telemetry, TelemetrySettings
from tests.rpc.certificates import Authority
from tests.telemetry.conftest import SHUTDOWN_TIMEOUT_S, VERSION, StartTelemetry
from tests.telemetry.otlp_sink import OtlpSink

BOUND_S = 0.2
"""What `shutdown` is given where it cannot succeed; far below the exporters' own ten seconds."""

MARGIN_S = 3.0
"""What a busy machine may take on top, still far below."""


def sampled_parent(*, is_sampled: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if is_sampled else TraceFlags.DEFAULT)
    return SpanContext(trace_id=0x0123456789ABCDEF0123456789ABCDEF, span_id=0xF00D, is_remote=True, trace_flags=flags)


async def test_a_span_arrives_with_resource_and_scope(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    tracer = telemetry.tracer_provider.get_tracer("guardwire", VERSION)
    with tracer.start_as_current_span("parent", attributes={"number": 3}):
        tracer.start_span("child").end()
    parent = await sink.span("parent", number=3)
    child = await sink.span("child")
    assert child.item.parent_span_id == parent.item.span_id
    assert child.item.trace_id == parent.item.trace_id
    assert (parent.scope.name, parent.scope.version) == ("guardwire", VERSION)
    assert parent.resource["service.name"] == "guardwire"
    assert parent.resource["service.version"] == VERSION
    assert parent.resource["telemetry.sdk.name"] == "opentelemetry"


async def test_each_telemetry_is_an_instance_of_its_own(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    for name in ("first", "second"):
        start_telemetry(otlp_endpoint=sink.endpoint).tracer_provider.get_tracer("t").start_span(name).end()
    first, second = await sink.span("first"), await sink.span("second")
    assert first.resource["service.instance.id"] != second.resource["service.instance.id"]


async def test_opentelemetry_variables_override_the_resource(
    sink: OtlpSink, start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "moderation")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-7,deployment.environment.name=test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=opensesame")
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    telemetry.tracer_provider.get_tracer("t").start_span("a").end()
    resource = (await sink.span("a")).resource
    assert resource["service.name"] == "moderation"
    assert resource["service.instance.id"] == "pod-7"
    assert resource["deployment.environment.name"] == "test"
    assert sink.metadata[0]["x-api-key"] == "opensesame"


async def test_a_collector_with_tls_is_verified_by_opentelemetrys_certificate(
    start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority("test")
    issued = authority.issue("localhost")
    credentials = grpc.ssl_server_credentials([(issued.private_key, issued.certificate)])
    async with OtlpSink(credentials) as sink:
        stranger = start_telemetry(otlp_endpoint=sink.endpoint)
        stranger.tracer_provider.get_tracer("t").start_span("to nobody known").end()
        await asyncio.to_thread(stranger.shutdown, BOUND_S)
        assert not sink.messages
        (tmp_path / "ca.pem").write_bytes(authority.certificate)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
        telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
        telemetry.tracer_provider.get_tracer("t").start_span("a").end()
        await sink.span("a")
        await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_TIMEOUT_S)


async def test_opentelemetry_can_be_switched_off(
    sink: OtlpSink, start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    fill(telemetry)
    await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_TIMEOUT_S)
    assert not sink.messages


async def test_metrics_arrive_with_unit_and_advised_buckets(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    meter = telemetry.meter_provider.get_meter("guardwire", VERSION)
    histogram = meter.create_histogram(
        "guardwire.test.duration", "s", "How long.", explicit_bucket_boundaries_advisory=[0.1, 1.0]
    )
    for value in (0.05, 0.5, 0.6, 7.0):
        histogram.record(value, {"kind": "stream"})
    meter.create_counter("guardwire.test.count", "{thing}").add(2)
    point = await sink.point("guardwire.test.duration", at_least=4, kind="stream")
    metric = await sink.metric("guardwire.test.duration")
    assert (metric.item.unit, metric.item.description) == ("s", "How long.")
    assert point.bounds == (0.1, 1.0)
    assert point.bucket_counts == (1, 2, 1)
    assert metric.resource["service.name"] == "guardwire"
    assert (await sink.point("guardwire.test.count", at_least=2)).value == 2


async def test_a_measurement_in_a_traced_call_is_an_exemplar(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    histogram = telemetry.meter_provider.get_meter("guardwire").create_histogram("guardwire.test.duration", "s")
    with telemetry.tracer_provider.get_tracer("t").start_as_current_span("call"):
        histogram.record(0.5)
    histogram.record(0.6)  # of no call
    span = await sink.span("call")
    point = await sink.point("guardwire.test.duration", at_least=2)
    assert [exemplar.trace_id for exemplar in point.exemplars] == [span.item.trace_id]


async def test_a_caller_decides_whether_its_call_is_traced(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    tracer = start_telemetry(otlp_endpoint=sink.endpoint, trace_ratio=0).tracer_provider.get_tracer("t")
    traced = set_span_in_context(NonRecordingSpan(sampled_parent(is_sampled=True)))
    tracer.start_span("of nobody").end()
    tracer.start_span("traced", traced).end()
    span = await sink.span("traced")
    assert span.item.trace_id == sampled_parent(is_sampled=True).trace_id.to_bytes(16, "big")
    assert span.item.kind == Span.SPAN_KIND_INTERNAL
    assert [span.item.name for span in sink.spans] == ["traced"]


async def test_a_caller_that_does_not_trace_is_followed(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    tracer = start_telemetry(otlp_endpoint=sink.endpoint, trace_ratio=1).tracer_provider.get_tracer("t")
    tracer.start_span("untraced", set_span_in_context(NonRecordingSpan(sampled_parent(is_sampled=False)))).end()
    tracer.start_span("of nobody").end()
    await sink.span("of nobody")
    assert [span.item.name for span in sink.spans] == ["of nobody"]


async def test_steps_are_kept_whatever_share_of_the_calls_is(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    tracer = start_telemetry(otlp_endpoint=sink.endpoint, trace_ratio=0).tracer_provider.get_tracer("t")
    assert not tracer.start_span("call").is_recording()
    tracer.start_span(STEP_SPAN).end()
    await sink.span(STEP_SPAN)


async def test_shutdown_sends_what_is_pending(
    sink: OtlpSink, start_telemetry: StartTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "3600000")
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint, metrics_interval_s=3600)
    for number in range(1000):  # more than a batch
        telemetry.tracer_provider.get_tracer("t").start_span(f"span {number}").end()
    telemetry.meter_provider.get_meter("m").create_counter("late").add(1)
    logging.getLogger("guardwire_server.test").warning("the last words")
    assert not sink.messages
    await asyncio.to_thread(telemetry.shutdown, 20)
    assert {span.item.name for span in sink.spans} == {f"span {number}" for number in range(1000)}
    assert "late" in sink.metrics
    assert [log.item.body.string_value for log in sink.logs] == ["the last words"]


async def test_shutdown_twice_is_once(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint, metrics_listen="127.0.0.1:0")
    await asyncio.to_thread(telemetry.shutdown, 20)
    num_messages = len(sink.messages)
    await asyncio.to_thread(telemetry.shutdown, 20)
    assert len(sink.messages) == num_messages


def test_nothing_asked_for_is_nothing_done(start_telemetry: StartTelemetry) -> None:
    threads = set(threading.enumerate())
    handlers = logging.getLogger().handlers[:]
    telemetry = start_telemetry()
    assert set(threading.enumerate()) == threads
    assert logging.getLogger().handlers == handlers
    assert isinstance(telemetry.tracer_provider, trace.NoOpTracerProvider)
    assert isinstance(telemetry.meter_provider, metrics.NoOpMeterProvider)
    assert isinstance(telemetry.logger_provider, logs_api.NoOpLoggerProvider)
    assert telemetry.metrics_address is None


async def test_no_provider_of_the_process_is_set(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint, metrics_listen="127.0.0.1:0")
    own = telemetry.tracer_provider, telemetry.meter_provider, telemetry.logger_provider
    assert trace.get_tracer_provider() not in own
    assert metrics.get_meter_provider() not in own
    assert logs_api.get_logger_provider() not in own


def fill(telemetry: Telemetry) -> None:
    """Something to export of every kind."""
    telemetry.tracer_provider.get_tracer("t").start_span("lost").end()
    telemetry.meter_provider.get_meter("m").create_counter("lost").add(1)
    logging.getLogger("guardwire_server.test").warning("lost")


@pytest.fixture
def closed_endpoint() -> Iterator[str]:
    """An address where nobody listens, and nobody can, for the length of the test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """An address where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_shutdown_without_a_collector_is_over_in_its_time(
    kind: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = request.getfixturevalue(f"{kind}_endpoint")
    telemetry = Telemetry(TelemetrySettings(version=VERSION, otlp_endpoint=endpoint, metrics_interval_s=0.05))
    telemetry.start()
    fill(telemetry)
    started_s = time.monotonic()
    telemetry.shutdown(BOUND_S)
    assert time.monotonic() - started_s < BOUND_S + ABORT_S + MARGIN_S
    assert "not all that was pending could be exported" in caplog.text
    assert {record.name.partition(".")[0] for record in caplog.records} == {"guardwire_server"}
    assert not [record for record in caplog.records if record.exc_info]


def test_a_silent_collector_floods_neither_memory_nor_log(
    silent_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry(TelemetrySettings(version=VERSION, otlp_endpoint=silent_endpoint))
    telemetry.start()
    for _ in range(4000):
        fill(telemetry)
    gc.collect()
    num_kept = sum(type(kept) in (ReadableSpan, ReadableLogRecord) for kept in gc.get_objects())
    assert 4096 <= num_kept <= 2 * (2048 + 512)  # of both a queue, and perhaps a batch that is under way
    telemetry.shutdown(BOUND_S)
    lines = [record for record in caplog.records if record.getMessage() != "lost"]
    assert len(lines) <= 6


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(
    sink: OtlpSink, start_telemetry: StartTelemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink.refuses_with = grpc.StatusCode.PERMISSION_DENIED  # not worth a second attempt
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    fill(telemetry)
    await sink.refused(traces=1, logs=1, metrics=3)
    sink.refuses_with = None
    fill(telemetry)
    await sink.span("lost")
    await sink.log(body="lost")
    await sink.metric("lost")
    await asyncio.to_thread(telemetry.shutdown, 20)
    lines = [record for record in caplog.records if record.name == SpanExporter.__module__]
    beginnings = [line.getMessage() for line in lines if line.levelno == logging.WARNING]
    ends = [line.getMessage() for line in lines if line.levelno == logging.INFO]
    assert {re.match(r"(\w+) are not exported", line)[1] for line in beginnings} == {"traces", "metrics", "logs"}  # type: ignore[index]
    assert all("PERMISSION_DENIED" in line and "told to refuse" in line for line in beginnings)
    assert sorted(ends) == [f"{signal} are exported again" for signal in ("logs", "metrics", "traces")]
    assert len(beginnings) == 3
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_others_that_export_in_this_process_log_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("opentelemetry.exporter.otlp.proto.grpc.exporter").warning("of somebody else")
    assert "of somebody else" in caplog.text


def test_a_variable_that_cannot_be_read_refuses_to_start(monkeypatch: pytest.MonkeyPatch, closed_endpoint: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "rot13")
    telemetry = Telemetry(
        TelemetrySettings(version=VERSION, otlp_endpoint=closed_endpoint, metrics_listen="127.0.0.1:0")
    )
    with pytest.raises(StartupError, match=r"otlp_endpoint: .*rot13.*OTEL_EXPORTER_OTLP_COMPRESSION"):
        telemetry.start()
