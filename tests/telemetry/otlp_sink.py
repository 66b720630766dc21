"""A collector in this process: it takes what OTLP exporters send over gRPC, keeps it, and can be asked for it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 20.0

ItemT = TypeVar("ItemT", bound=Message)
FoundT = TypeVar("FoundT")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Received(Generic[ItemT]):
    """A span, a log record or a metric, with what it came with; `attributes` is empty for a metric."""

    item: ItemT
    attributes: Mapping[str, Any]
    scope: InstrumentationScope
    resource: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One data point: `value` of a counter or gauge, or all of a histogram's."""

    attributes: Mapping[str, Any]
    value: float
    count: int
    bounds: tuple[float, ...]
    bucket_counts: tuple[int, ...]
    exemplars: tuple[Any, ...]


class OtlpSink:
    """Owner of the collector, for the length of an `async with`. Thread: the event loop."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        """Makes a collector; with credentials it speaks TLS, as `localhost`."""
        self._credentials = credentials
        self.messages: list[Message] = []
        """Every request, as it came."""
        self.metadata: list[dict[str, Any]] = []
        """The metadata of every request."""
        self.refuses_with: grpc.StatusCode | None = None
        """Set, it makes every export fail so."""
        self.num_refused: Counter[str] = Counter()
        """By signal: traces, metrics, logs."""
        self.spans: list[Received[Span]] = []
        self.logs: list[Received[LogRecord]] = []
        self.metrics: dict[str, Received[Metric]] = {}
        """What came last under each name; all is cumulative."""
        self._arrived = asyncio.Condition()
        self._server = grpc.aio.server()
        self.endpoint: str

    async def __aenter__(self) -> Self:
        trace_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)  # type: ignore[no-untyped-call]
        metrics_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)  # type: ignore[no-untyped-call]
        logs_grpc.add_LogsServiceServicer_to_server(_Logs(self), self._server)  # type: ignore[no-untyped-call]
        if self._credentials:
            self.endpoint = f"https://localhost:{self._server.add_secure_port('127.0.0.1:0', self._credentials)}"
        else:
            self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def span(self, name: str, **attributes: Any) -> Received[Span]:  # noqa: ANN401 of all types
        """Waits for a span of that name with at least these attributes (underscores twice for dots)."""
        wanted = _dotted(attributes)
        return await self._first(
            lambda: (span for span in self.spans if span.item.name == name and _holds(span.attributes, wanted)),
            f"span {name} with {wanted}",
        )

    async def log(self, event_name: str = "", body: str = "", **attributes: Any) -> Received[LogRecord]:  # noqa: ANN401
        """Waits for a log record of that event name, whose body holds `body`, with at least these attributes."""
        wanted = _dotted(attributes)
        return await self._first(
            lambda: (
                log
                for log in self.logs
                if log.item.event_name == event_name
                and body in log.item.body.string_value
                and _holds(log.attributes, wanted)
            ),
            f"log record of event {event_name!r} with {body!r} and {wanted}",
        )

    async def metric(self, name: str) -> Received[Metric]:
        """Waits for a metric of that name."""
        return await self._first(lambda: (metric for metric in [self.metrics.get(name)] if metric), f"metric {name}")

    async def point(self, name: str, at_least: float = 0, **attributes: Any) -> Point:  # noqa: ANN401
        """Waits for a data point with exactly these attributes, and a value (a histogram: a count) of at least so much.

        It is the newest one; what comes later does not change it.
        """
        wanted = _dotted(attributes)

        def found() -> Iterable[Point]:
            for point in points(self.metrics[name].item) if name in self.metrics else ():
                if point.attributes == wanted and (point.count if point.bounds else point.value) >= at_least:
                    yield point

        return await self._first(found, f"metric {name} of at least {at_least} with {wanted}")

    async def refused(self, **num_exports: int) -> None:
        """Waits until so many exports of each signal were refused."""
        await self._first(
            lambda: [True] if self.num_refused >= Counter(num_exports) else [], f"refused exports {num_exports}"
        )

    async def _first(self, find: Callable[[], Iterable[FoundT]], wanted: str) -> FoundT:
        async with self._arrived:
            try:
                async with asyncio.timeout(WAIT_S):
                    while (item := next(iter(find()), None)) is None:
                        await self._arrived.wait()
            except TimeoutError:
                raise AssertionError(f"no {wanted} came within {WAIT_S:g} s; what came: {self.inventory()}") from None
        return item

    def inventory(self) -> str:
        """What is there, by name, with attributes."""
        lines = [f"span {span.item.name} {dict(span.attributes)}" for span in self.spans]
        lines += [
            f"log {log.item.event_name or log.item.body.string_value!r} {dict(log.attributes)}" for log in self.logs
        ]
        for name, metric in self.metrics.items():
            values = [f"{dict(point.attributes)} = {point.value:g}" for point in points(metric.item)]
            lines.append(f"metric {name} {'; '.join(values)}")
        return "".join(f"\n  {line}" for line in lines) or "nothing"

    async def take(self, signal: str, request: Message, context: Context) -> None:
        """Keeps a request, or refuses it."""
        if self.refuses_with:
            async with self._arrived:
                self.num_refused[signal] += 1
                self._arrived.notify_all()
            await context.abort(self.refuses_with, "the collector was told to refuse")
        self.messages.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.spans += _unpack(request, "resource_spans", "scope_spans", "spans")
        self.logs += _unpack(request, "resource_logs", "scope_logs", "log_records")
        for metric in _unpack(request, "resource_metrics", "scope_metrics", "metrics"):
            self.metrics[metric.item.name] = metric
        async with self._arrived:
            self._arrived.notify_all()


class _Traces(trace_grpc.TraceServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    async def Export(  # noqa: N802
        self, request: trace_pb.ExportTraceServiceRequest, context: Context
    ) -> trace_pb.ExportTraceServiceResponse:
        await self._sink.take("traces", request, context)
        return trace_pb.ExportTraceServiceResponse()


class _Metrics(metrics_grpc.MetricsServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    async def Export(  # noqa: N802
        self, request: metrics_pb.ExportMetricsServiceRequest, context: Context
    ) -> metrics_pb.ExportMetricsServiceResponse:
        await self._sink.take("metrics", request, context)
        return metrics_pb.ExportMetricsServiceResponse()


class _Logs(logs_grpc.LogsServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    async def Export(  # noqa: N802
        self, request: logs_pb.ExportLogsServiceRequest, context: Context
    ) -> logs_pb.ExportLogsServiceResponse:
        await self._sink.take("logs", request, context)
        return logs_pb.ExportLogsServiceResponse()


def points(metric: Metric) -> list[Point]:
    """The data points of a metric, whatever its kind."""
    kind = metric.WhichOneof("data")
    assert kind in ("gauge", "sum", "histogram"), kind
    if kind == "histogram":
        return [
            Point(
                attributes=attributes_of(point.attributes),
                value=point.sum,
                count=point.count,
                bounds=tuple(point.explicit_bounds),
                bucket_counts=tuple(point.bucket_counts),
                exemplars=tuple(point.exemplars),
            )
            for point in metric.histogram.data_points
        ]
    return [
        Point(
            attributes=attributes_of(point.attributes),
            value=point.as_double if point.WhichOneof("value") == "as_double" else point.as_int,
            count=0,
            bounds=(),
            bucket_counts=(),
            exemplars=tuple(point.exemplars),
        )
        for point in (metric.gauge if kind == "gauge" else metric.sum).data_points
    ]


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as plain values."""
    return {pair.key: _plain(pair.value) for pair in pairs}


def _plain(value: AnyValue) -> Any:  # noqa: ANN401 of all types
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    return getattr(value, kind)


def _unpack(request: Any, by_resource: str, by_scope: str, items: str) -> list[Received[Any]]:  # noqa: ANN401
    """The items of a request of any signal, none if it is of another."""
    return [
        Received(item, attributes_of(getattr(item, "attributes", ())), scope_items.scope, _resource(group.resource))
        for group in getattr(request, by_resource, ())
        for scope_items in getattr(group, by_scope)
        for item in getattr(scope_items, items)
    ]


def _resource(resource: Resource) -> dict[str, Any]:
    return attributes_of(resource.attributes)


def _dotted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _holds(attributes: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return wanted.items() <= attributes.items()
