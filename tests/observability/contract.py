"""The metrics as Prometheus sees them: what dashboards, alerts and people's own queries are written against.

This is the names' second home on purpose. Whoever renames an instrument breaks queries that nobody here can see, and
should find out by a test.
"""

from typing import NamedTuple

from guardwire_server.telemetry import names


class Metric(NamedTuple):
    """A metric by its name without the suffixes of a kind, its kind, and the labels that it may have."""

    name: str
    kind: str
    labels: frozenset[str] = frozenset()


def _metric(name: str, kind: str, *labels: str) -> Metric:
    return Metric(name, kind, frozenset(labels))


_KIND = "guardwire_model_kind"

METRICS: dict[str, Metric] = {
    names.CALL_DURATION: _metric(
        "rpc_server_call_duration_seconds",
        "histogram",
        "rpc_system_name",
        "rpc_method",
        "rpc_response_status_code",
        "error_type",
    ),
    names.TIME_TO_PROMPT_VERDICT: _metric("guardwire_stream_time_to_prompt_verdict_seconds", "histogram"),
    names.VERDICT_LAG: _metric("guardwire_token_verdict_lag_seconds", "histogram"),
    names.QUEUE_WAIT: _metric("guardwire_step_queue_wait_seconds", "histogram", _KIND),
    names.STEP_DURATION: _metric("guardwire_step_duration_seconds", "histogram", _KIND),
    names.STEP_TOKENS: _metric("guardwire_step_tokens", "histogram", _KIND),
    names.STEP_SEQUENCES: _metric("guardwire_step_sequences", "histogram", _KIND),
    names.CLASSIFY_PASSES: _metric("guardwire_classify_passes", "histogram"),
    names.SESSIONS_OPENED: _metric("guardwire_session_opened", "counter", "guardwire_tenant"),
    names.SESSIONS_ENDED: _metric("guardwire_session_ended", "counter", "guardwire_end_reason"),
    names.KV_ARENA_EVICTIONS: _metric("guardwire_kv_arena_evictions", "counter", _KIND),
    names.REPREFILLED_TOKENS: _metric("guardwire_kv_arena_reprefilled_tokens", "counter", _KIND),
    names.TOKENS_JUDGED: _metric("guardwire_token_judged", "counter", "guardwire_risk_level"),
    names.DECISIONS: _metric(
        "guardwire_decision_taken",
        "counter",
        "guardwire_action",
        "guardwire_category",
        "guardwire_role",
        "guardwire_risk_level",
        "guardwire_enforced",
    ),
    names.CLASSIFY_TOKENS: _metric("guardwire_classify_tokens", "counter", "guardwire_prefix"),
    names.REJECTIONS: _metric("guardwire_request_rejected", "counter", "guardwire_reason", "guardwire_tenant"),
    names.RELOADS: _metric("guardwire_config_reloads", "counter", "guardwire_setting", "guardwire_outcome"),
    names.SESSIONS_ACTIVE: _metric("guardwire_session_active", "gauge"),
    names.SESSIONS_LIMIT: _metric("guardwire_session_limit", "gauge"),
    names.CALLS_ACTIVE: _metric("guardwire_classify_active", "gauge"),
    names.PENDING_TOKENS: _metric("guardwire_token_pending", "gauge", _KIND),
    names.KV_ARENA_USED: _metric("guardwire_kv_arena_used_ratio", "gauge", _KIND),
    names.SERVING: _metric("guardwire_health_serving", "gauge"),
    names.START_TIME: _metric("guardwire_process_start_time_seconds", "gauge"),
    names.CERTIFICATE_EXPIRY: _metric("guardwire_tls_certificate_expiry_seconds", "gauge"),
    names.CONFIG_REFUSED: _metric("guardwire_config_refused", "gauge", "guardwire_setting"),
}
"""By the instrument's name."""

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
"""What the kinds of metrics append to make series of one."""

SERIES: dict[str, Metric] = {
    f"{metric.name}{suffix}": metric for metric in METRICS.values() for suffix in SUFFIXES[metric.kind]
}
"""By the name of the series, as queries spell it."""
