"""Engine steps as metrics, and a sample of them as spans."""

import random
import time
from collections.abc import Callable

from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, Tracer

from guardwire_server.core.observation import StepReport
from guardwire_server.telemetry import names
from guardwire_server.telemetry.instruments import Instruments

MAX_LINKS = 32
"""Streams that a step's span links to: enough to get from a slow step to the calls it held up."""


class StepTelemetry:
    """Takes every step's report. Thread: the device thread; `link` and `unlink` are called on the event loop."""

    def __init__(
        self,
        instruments: Instruments,
        tracer: Tracer,
        trace_ratio: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Records steps.

        Args:
            instruments: Where measurements go.
            tracer: Where spans go.
            trace_ratio: Share of the steps that become spans, 0 to 1.
            draw: Gives a number from 0 to 1, below `trace_ratio` for a step that becomes a span.
        """
        self._tracer = tracer
        self._trace_ratio = trace_ratio
        self._draw = draw
        self._duration = instruments.histogram(names.STEP_DURATION)
        self._queue_wait = instruments.histogram(names.QUEUE_WAIT)
        self._tokens = instruments.histogram(names.STEP_TOKENS)
        self._sequences = instruments.histogram(names.STEP_SEQUENCES)
        self._stream_spans: dict[int, SpanContext] = {}  # by sequence; of streams that are traced

    def link(self, seq_id: int, span: SpanContext) -> None:
        """Steps of this sequence belong to a stream that is traced, as this span."""
        if self._trace_ratio:
            self._stream_spans[seq_id] = span

    def unlink(self, seq_id: int) -> None:
        """The sequence is gone."""
        self._stream_spans.pop(seq_id, None)

    def step_done(self, report: StepReport) -> None:
        """Records a step."""
        attributes = {names.MODEL_KIND: report.model_kind}
        num_tokens, num_sequences = report.plan.num_tokens, len(report.plan.chunks)
        self._duration.record(report.duration_s, attributes)
        self._tokens.record(num_tokens, attributes)
        self._sequences.record(num_sequences, attributes)
        if report.queue_wait_s is not None:
            self._queue_wait.record(report.queue_wait_s, attributes)
        if self._trace_ratio and self._draw() < self._trace_ratio:
            self._trace(report)

    def _trace(self, report: StepReport) -> None:
        ended_ns = time.time_ns()
        # Sequence ids of the two engines are counted apart: only streams have spans that steps may link to.
        chunks = report.plan.chunks if report.model_kind == "stream" else ()
        known = (self._stream_spans.get(chunk.seq_id) for chunk in chunks)
        links = [Link(context) for context in known if context is not None][:MAX_LINKS]
        span = self._tracer.start_span(
            names.STEP_SPAN,
            kind=SpanKind.INTERNAL,
            links=links,
            start_time=ended_ns - round(report.duration_s * 1e9),
            attributes={
                names.MODEL_KIND: report.model_kind,
                names.NUM_TOKENS: report.plan.num_tokens,
                names.NUM_SEQUENCES: len(report.plan.chunks),
            },
        )
        if report.has_failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)
