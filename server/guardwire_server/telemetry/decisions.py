"""Decisions as telemetry: a count, a log event of GenAI evaluations, and a span where the call is traced."""

from opentelemetry import trace
from opentelemetry.trace import Span, Tracer

from guardwire_server.telemetry import names
from guardwire_server.telemetry.evaluations import Evaluated, Evaluation, EvaluationEvents
from guardwire_server.telemetry.instruments import Instruments


class DecisionTelemetry:
    """Records decisions. Thread: the event loop."""

    def __init__(self, instruments: Instruments, tracer: Tracer, events: EvaluationEvents) -> None:
        self._counter = instruments.counter(names.DECISIONS)
        self._tracer = tracer
        self._events = events

    def record(self, evaluation: Evaluation, evaluated: Evaluated, call_span: Span) -> None:
        """Records a decision on a text of the call or stream whose span this is.

        One with a token index is one of several that its stream may come to, and gets a span of its own.
        """
        attributes: dict[str, str | int | bool] = {
            **evaluation.labels,
            names.RISK_LEVEL: evaluation.risk_level.name.lower() if evaluation.risk_level else "not_judged",
        }
        self._counter.add(1, attributes)
        if call_span.is_recording() and evaluation.token_index is not None:
            attributes[names.TOKEN_INDEX] = evaluation.token_index
            if evaluation.cut_index is not None:
                attributes[names.CUT_INDEX] = evaluation.cut_index
            context = trace.set_span_in_context(call_span)
            self._tracer.start_span(names.DECISION_SPAN, context=context, attributes=attributes).end()
        self._events.emit(evaluation, evaluated, call_span.get_span_context())
