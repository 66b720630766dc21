"""Every instrument, declared once: name, unit, meaning, buckets.

What happens once a step, a stream or a call is recorded as it happens. What is counted per token is added up where it
arises (core.observation) and read when somebody collects, which costs tokens nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.verdict import RiskLevel
from guardwire_server.telemetry import names

WAIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a small model's step on a GPU to a timeout."""

CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Those of the RPC conventions, and on to the longest stream: a call that moderates lasts as long as an answer."""

SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
"""Tokens and sequences of a step, up to the token budget of a GPU."""

PASS_BUCKETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""One to three when the answer is guessed, as many as it has tokens when it is not."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an instrument is; `buckets` only for histograms."""

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] = ()


HISTOGRAMS = (
    Declaration(names.CALL_DURATION, "s", "Duration of calls.", CALL_BUCKETS_S),
    Declaration(
        names.TIME_TO_PROMPT_VERDICT, "s", "From a stream's open to the verdict on its prompt.", WAIT_BUCKETS_S
    ),
    Declaration(
        names.VERDICT_LAG, "s", "From a token's message to the message with its verdict; a sample.", WAIT_BUCKETS_S
    ),
    Declaration(
        names.QUEUE_WAIT, "s", "How long one sequence of a step, drawn as a sample, waited for it.", WAIT_BUCKETS_S
    ),
    Declaration(names.STEP_DURATION, "s", "Duration of engine steps.", WAIT_BUCKETS_S),
    Declaration(names.STEP_TOKENS, "{token}", "Tokens of engine steps.", SIZE_BUCKETS),
    Declaration(names.STEP_SEQUENCES, "{sequence}", "Sequences of engine steps.", SIZE_BUCKETS),
    Declaration(names.CLASSIFY_PASSES, "{pass}", "Forward passes that Classify calls took part in.", PASS_BUCKETS),
)
COUNTERS = (
    Declaration(names.SESSIONS_OPENED, "{session}", "Streams admitted."),
    Declaration(names.SESSIONS_ENDED, "{session}", "Streams ended, by how."),
    Declaration(names.DECISIONS, "{decision}", "Decisions of policies."),
    Declaration(names.REJECTIONS, "{request}", "Calls and streams refused, by reason."),
    Declaration(names.RELOADS, "{reload}", "Changed files of settings that were taken or refused."),
)
OBSERVED_COUNTERS = (
    Declaration(names.TOKENS_JUDGED, "{token}", "Tokens of answers judged, by risk level."),
    Declaration(names.KV_ARENA_EVICTIONS, "{eviction}", "Idle sequences that lost their cached keys and values."),
    Declaration(names.REPREFILLED_TOKENS, "{token}", "Tokens computed again because an eviction had taken them."),
    Declaration(
        names.CLASSIFY_TOKENS, "{token}", "Tokens of Classify calls, guessed answers included: computed or copied."
    ),
)
GAUGES = (
    Declaration(names.SESSIONS_ACTIVE, "{session}", "Streams open."),
    Declaration(names.SESSIONS_LIMIT, "{session}", "Streams that may be open at once."),
    Declaration(names.CALLS_ACTIVE, "{call}", "Classify calls waiting or running."),
    Declaration(names.PENDING_TOKENS, "{token}", "Tokens accepted and not judged yet."),
    Declaration(names.KV_ARENA_USED, "1", "Share of the key-value arena in use."),
    Declaration(names.SERVING, "{boolean}", "1 while health says SERVING, else 0."),
    Declaration(names.START_TIME, "s", "When the server was started, in Unix time."),
    Declaration(names.CERTIFICATE_EXPIRY, "s", "When the server's certificate expires, in Unix time."),
    Declaration(names.CONFIG_REFUSED, "{boolean}", "1 while what a setting's file says is refused, else 0."),
)


def of_tenant(tenant: str | None) -> dict[str, str]:
    """The attribute that names a tenant; none where callers are not told apart."""
    return {names.TENANT: tenant} if tenant else {}


class ServerState(NamedTuple):
    """What the observed instruments tell.

    An engine's load is None where its model is not served. `is_refused` holds the settings whose files may change.
    """

    num_sessions: int
    max_sessions: int
    num_calls: int
    stream: EngineLoad | None
    gen: EngineLoad | None
    is_serving: bool
    started_s: float
    certificate_expiry_s: float | None
    is_refused: Mapping[str, bool]


class Instruments:
    """All instruments of one server. May be used from any thread."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._histograms = {
            declared.name: meter.create_histogram(
                declared.name,
                declared.unit,
                declared.description,
                explicit_bucket_boundaries_advisory=declared.buckets,
            )
            for declared in HISTOGRAMS
        }
        self._counters = {
            declared.name: meter.create_counter(declared.name, declared.unit, declared.description)
            for declared in COUNTERS
        }

    def histogram(self, name: str) -> Histogram:
        """A histogram, by its name."""
        return self._histograms[name]

    def counter(self, name: str) -> Counter:
        """A counter, by its name."""
        return self._counters[name]

    def observe(self, read: Callable[[], ServerState]) -> None:
        """Lets the observed instruments tell what `read` returns; it is called on the collecting thread."""
        for declared in OBSERVED_COUNTERS:
            self._meter.create_observable_counter(
                declared.name, [_callback(read, declared.name)], declared.unit, declared.description
            )
        for declared in GAUGES:
            self._meter.create_observable_gauge(
                declared.name, [_callback(read, declared.name)], declared.unit, declared.description
            )


def _callback(read: Callable[[], ServerState], name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for value, attributes in _values(read(), name)]

    return observe


def _values(state: ServerState, name: str) -> list[tuple[float, dict[str, str]]]:
    """What one observed instrument tells of a state: values with their attributes."""
    loads = [(kind, load) for kind, load in (("stream", state.stream), ("gen", state.gen)) if load]
    by_kind = {
        names.PENDING_TOKENS: lambda load: load.num_pending_tokens,
        names.KV_ARENA_USED: lambda load: load.arena_used,
        names.KV_ARENA_EVICTIONS: lambda load: load.num_evictions,
        names.REPREFILLED_TOKENS: lambda load: load.num_reprefilled_tokens,
    }
    if name in by_kind:
        return [(by_kind[name](load), {names.MODEL_KIND: kind}) for kind, load in loads]
    if name == names.TOKENS_JUDGED:
        judged = state.stream.num_judged if state.stream else ()
        return [
            (num_tokens, {names.RISK_LEVEL: level.name.lower()})
            for level, num_tokens in zip(RiskLevel, judged, strict=False)
        ]
    if name == names.CLASSIFY_TOKENS:
        if state.gen is None:
            return []
        return [
            (state.gen.num_reused_tokens, {names.PREFIX: "reused"}),
            (state.gen.num_step_tokens, {names.PREFIX: "computed"}),
        ]
    if name == names.CONFIG_REFUSED:
        return [(float(is_refused), {names.SETTING: setting}) for setting, is_refused in state.is_refused.items()]
    single: dict[str, float | None] = {
        names.SESSIONS_ACTIVE: state.num_sessions if state.stream else None,
        names.SESSIONS_LIMIT: state.max_sessions if state.stream else None,
        names.CALLS_ACTIVE: state.num_calls if state.gen else None,
        names.SERVING: float(state.is_serving),
        names.START_TIME: state.started_s,
        names.CERTIFICATE_EXPIRY: state.certificate_expiry_s,
    }
    value = single[name]
    return [] if value is None else [(value, {})]
