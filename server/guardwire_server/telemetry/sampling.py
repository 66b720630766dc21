"""Which traces are kept."""

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from guardwire_server.telemetry.names import STEP_SPAN


def make_sampler(trace_ratio: float) -> Sampler:
    """Follows a caller that traces, or does not; of all other calls it keeps a share.

    The spans of engine steps have no caller. Which of them are made is drawn before (`step_trace_ratio`), and those
    are kept whatever share of the calls is.
    """
    return ParentBased(root=_RootSampler(trace_ratio))


class _RootSampler(Sampler):
    def __init__(self, trace_ratio: float) -> None:
        self._calls = TraceIdRatioBased(trace_ratio)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        sampler = ALWAYS_ON if name == STEP_SPAN else self._calls
        return sampler.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"guardwire(calls={self._calls.get_description()})"
