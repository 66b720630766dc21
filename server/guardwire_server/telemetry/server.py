"""All telemetry of one server, put together from three providers."""

from collections.abc import Callable
from typing import Final

from opentelemetry import _logs as logs
from opentelemetry import metrics, trace

from guardwire_server.core.observation import StepObserver, StreamObserver
from guardwire_server.telemetry import names
from guardwire_server.telemetry.calls import CallTelemetry
from guardwire_server.telemetry.decisions import DecisionTelemetry
from guardwire_server.telemetry.evaluations import Evaluated, Evaluation, EvaluationEvents
from guardwire_server.telemetry.instruments import Instruments, ServerState, of_tenant
from guardwire_server.telemetry.steps import StepTelemetry
from guardwire_server.telemetry.streams import StreamInstruments, StreamTelemetry

_NO_TRACES, _NO_METRICS, _NO_LOGS = trace.NoOpTracerProvider(), metrics.NoOpMeterProvider(), logs.NoOpLoggerProvider()


class ServerTelemetry:
    """What the parts of a server record with. Thread: the event loop, but for the steps' observer."""

    def __init__(
        self,
        version: str,
        *,
        tracer_provider: trace.TracerProvider = _NO_TRACES,
        meter_provider: metrics.MeterProvider = _NO_METRICS,
        logger_provider: logs.LoggerProvider = _NO_LOGS,
        step_trace_ratio: float = 0.0,
    ) -> None:
        """Makes all instruments.

        Args:
            version: The version of the server, for the scope.
            tracer_provider: Where spans go.
            meter_provider: Where measurements go.
            logger_provider: Where events go.
            step_trace_ratio: Share of the engine steps that become spans, 0 to 1.
        """
        tracer = tracer_provider.get_tracer(names.SCOPE, version)
        meter = meter_provider.get_meter(names.SCOPE, version)
        events = EvaluationEvents(logger_provider, version)
        is_traced = not isinstance(tracer_provider, trace.NoOpTracerProvider)
        self.is_enabled: Final = is_traced or not isinstance(meter_provider, metrics.NoOpMeterProvider)
        self._instruments = Instruments(meter)
        self._steps = StepTelemetry(self._instruments, tracer, step_trace_ratio if is_traced else 0.0)
        self._decisions = DecisionTelemetry(self._instruments, tracer, events)
        self._streams = StreamInstruments(self._instruments, tracer, self._steps, self._decisions)
        self._passes = self._instruments.histogram(names.CLASSIFY_PASSES)
        self._reloads = self._instruments.counter(names.RELOADS)
        self.calls = CallTelemetry(self._instruments, tracer)

    @property
    def step_observer(self) -> StepObserver | None:
        """Who is told of engine steps; None if nobody listens."""
        return self._steps if self.is_enabled else None

    def stream_observers(
        self, model: str, tenant: str, *, has_own_call: bool
    ) -> Callable[[int, str], StreamObserver] | None:
        """Makes the observers of a call's streams, from a sequence's id and a session's; None if nobody listens."""
        if not self.is_enabled:
            return None

        def observe(seq_id: int, session_id: str) -> StreamObserver:
            evaluated = Evaluated(policy="", model=model, session_id=session_id, tenant=tenant or None)
            return StreamTelemetry(self._streams, seq_id, evaluated, has_own_call=has_own_call)

        return observe

    def classified(
        self, evaluation: Evaluation, evaluated: Evaluated, *, num_prompt_tokens: int, num_passes: int
    ) -> None:
        """Records an answered Classify call, within the context of its call."""
        self._passes.record(num_passes)
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes({names.POLICY: evaluated.policy, names.ACTION: evaluation.action.name.lower()})
            span.set_attributes({names.NUM_PROMPT_TOKENS: num_prompt_tokens, names.NUM_PASSES: num_passes})
            span.set_attributes(of_tenant(evaluated.tenant))
        self._decisions.record(evaluation, evaluated, span)

    def reloaded(self, setting: str, is_valid: bool) -> None:
        """Records that a changed file was taken or refused."""
        self._reloads.add(1, {names.SETTING: setting, names.OUTCOME: "taken" if is_valid else "refused"})

    def observe(self, read: Callable[[], ServerState]) -> None:
        """Says where the state comes from that is told whenever metrics are collected."""
        self._instruments.observe(read)
