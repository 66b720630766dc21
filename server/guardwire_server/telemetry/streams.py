"""One stream as telemetry: counts, the time to its prompt's verdict, spans for what it read and decided.

A stream that has a call to itself is that call's span; one of many on a call gets a span of its own below it. Reading
the prompt and every decision are children of that. Nothing is recorded per token: verdict lags come as samples, tokens
as a total at the end.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Tracer

from guardwire_server.core.events import (
    DecisionTaken,
    EndReason,
    PromptVerdict,
    StreamEnded,
    StreamOpened,
    SummaryGiven,
    Update,
)
from guardwire_server.telemetry import names
from guardwire_server.telemetry.decisions import DecisionTelemetry
from guardwire_server.telemetry.evaluations import Evaluated, Evaluation
from guardwire_server.telemetry.instruments import Instruments, of_tenant
from guardwire_server.telemetry.steps import StepTelemetry

ABANDONED = "abandoned"
"""How a stream ended whose call was gone before anything could be told."""

FAULTS = ("internal", "step_failed", "device_lost")
"""How streams end by the server's fault while it runs, as the reasons of the errors in lower case."""


class StreamInstruments:
    """What all streams record with. May be used from any thread."""

    def __init__(
        self, instruments: Instruments, tracer: Tracer, steps: StepTelemetry, decisions: DecisionTelemetry
    ) -> None:
        self.tracer = tracer
        self.steps = steps
        self.decisions = decisions
        self.opened = instruments.counter(names.SESSIONS_OPENED)
        self.ended = instruments.counter(names.SESSIONS_ENDED)
        # A lost device ends all streams at once, and its server is restarted soon after. A series that began with them
        # would begin at its last value, and nobody who asks how much it rose would ever hear of them.
        for reason in (*(end.value for end in EndReason), ABANDONED, *FAULTS):
            self.ended.add(0, {names.END_REASON: reason})
        self.lag = instruments.histogram(names.VERDICT_LAG)
        self.time_to_prompt_verdict = instruments.histogram(names.TIME_TO_PROMPT_VERDICT)


class StreamTelemetry:
    """The observer of one stream. Owner: the stream. Thread: the event loop."""

    def __init__(
        self,
        instruments: StreamInstruments,
        seq_id: int,
        evaluated: Evaluated,
        *,
        has_own_call: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watches a stream that is being admitted, within the context of its call.

        Args:
            instruments: What to record with.
            seq_id: Its sequence in the engine.
            evaluated: What it judges, and for whom; the policy is not known yet.
            has_own_call: Whether it is all of its call, and not one of many.
            clock: Gives the time in seconds.
        """
        self._instruments = instruments
        self._seq_id = seq_id
        self._evaluated = evaluated
        self._clock = clock
        call_span = trace.get_current_span()
        is_traced = call_span.is_recording()
        self._span = call_span
        self._has_own_span = is_traced and not has_own_call
        if self._has_own_span:
            self._span = instruments.tracer.start_span(names.STREAM_SPAN, kind=SpanKind.INTERNAL)
        if is_traced:
            self._span.set_attribute(names.SESSION_ID, evaluated.session_id or "")
            self._span.set_attributes(of_tenant(evaluated.tenant))
            instruments.steps.link(seq_id, self._span.get_span_context())
        self._reading: Span | None = None
        self._opened_s: float | None = None
        self._end_reason = ABANDONED
        instruments.opened.add(1, of_tenant(evaluated.tenant))

    def told(self, update: Update) -> None:
        """Takes note of what the caller is being told."""
        if isinstance(update, StreamOpened):
            self._note_opened(update)
        elif isinstance(update, PromptVerdict):
            self._note_prompt_verdict()
        elif isinstance(update, DecisionTaken):
            evaluation = Evaluation.of(update.decision, enforced=update.enforced)
            self._instruments.decisions.record(evaluation, self._evaluated, self._span)
        elif isinstance(update, SummaryGiven):
            self._end_reason = update.end_reason.value

    def lagged(self, lag_s: float) -> None:
        """Records the verdict lag of one token."""
        self._instruments.lag.record(lag_s)

    def closed(self, end: StreamEnded | None, num_tokens: int) -> None:
        """Settles everything."""
        if end and end.error:
            self._end_reason = end.error.reason.lower()
        self._instruments.steps.unlink(self._seq_id)
        self._instruments.ended.add(1, {names.END_REASON: self._end_reason})
        if self._reading is not None:
            self._reading.end()
        if self._span.is_recording():
            self._span.set_attributes({names.END_REASON: self._end_reason, names.NUM_TOKENS: num_tokens})
        if self._has_own_span:
            self._span.end()

    def _note_opened(self, update: StreamOpened) -> None:
        self._opened_s = self._clock()
        self._evaluated = replace(self._evaluated, policy=update.policy_name)
        if not self._span.is_recording():
            return
        self._span.set_attribute(names.POLICY, update.policy_name)
        self._span.set_attribute(names.NUM_PROMPT_TOKENS, update.num_prompt_tokens)
        self._reading = self._instruments.tracer.start_span(
            names.PREFILL_SPAN,
            context=trace.set_span_in_context(self._span),
            attributes={names.NUM_PROMPT_TOKENS: update.num_prompt_tokens},
        )

    def _note_prompt_verdict(self) -> None:
        """The first one ends the reading of the prompt; later ones belong to later turns."""
        if self._opened_s is None:
            return
        self._instruments.time_to_prompt_verdict.record(self._clock() - self._opened_s)
        self._opened_s = None
        if self._reading is not None:
            self._reading.end()
            self._reading = None
