"""Whether it serves, how fast, and what the engine does for it."""

from deploy.observability.grafana.panel import (
    CALL_DURATION,
    CALLS,
    COUNT,
    FAULTS,
    HERE,
    SECONDS,
    SHARE,
    Panel,
    Row,
    mean,
    quantile,
    quantiles,
    rate,
    with_method,
)

_CALL_RATE = rate(f"{CALL_DURATION}_count", selector=CALLS)
_FAULT_RATE = rate(f"{CALL_DURATION}_count", selector=f"{CALLS}, {FAULTS}")

OVERVIEW = Row(
    "Overview",
    (
        Panel(
            "Servers that serve",
            "How many servers say SERVING, of those that report.",
            COUNT,
            {"serving": f"sum(guardwire_health_serving{{{HERE}}})", "of": f"count(guardwire_health_serving{{{HERE}}})"},
            kind="stat",
            width=5,
        ),
        Panel(
            "Calls",
            "Calls that ended, a second. A stream counts when it ends.",
            "count:calls/s",
            {"calls": _CALL_RATE},
            kind="stat",
            width=5,
        ),
        Panel(
            "Failed by the server's fault",
            "Share of the calls that ended with INTERNAL, UNAVAILABLE, UNKNOWN or DATA_LOSS.",
            SHARE,
            # There is no counter of errors before the first one.
            {"failed": f"({_FAULT_RATE} or 0 * {_CALL_RATE}) / {_CALL_RATE}"},
            kind="stat",
            width=5,
            thresholds=((0.001, "orange"), (0.0144, "red")),
        ),
        Panel(
            "Streams open",
            "Streams that are open now, over all servers.",
            COUNT,
            {"open": f"sum(guardwire_session_active{{{HERE}}})"},
            kind="stat",
            width=4,
        ),
        Panel(
            "Tokens judged",
            "Tokens of answers that got their verdict, a second.",
            "count:tokens/s",
            {"judged": rate("guardwire_token_judged_total")},
            kind="stat",
            width=5,
        ),
        Panel(
            "Calls by status",
            "Calls that ended, by their gRPC status. CANCELLED are callers that left.",
            "count:calls/s",
            {
                "{{rpc_response_status_code}}": rate(f"{CALL_DURATION}_count", "rpc_response_status_code", CALLS),
            },
            is_stacked=True,
        ),
        Panel(
            "Streams and Classify calls at once",
            "Open streams against max_sessions, and Classify calls that wait or run.",
            COUNT,
            {
                "streams": f"sum(guardwire_session_active{{{HERE}}})",
                "limit of streams": f"sum(guardwire_session_limit{{{HERE}}})",
                "Classify calls": f"sum(guardwire_classify_active{{{HERE}}})",
            },
        ),
        Panel(
            "Streams by how they ended",
            "finished and blocked are good ends, abandoned are callers that left; the others are reasons of errors.",
            "count:streams/s",
            {"{{guardwire_end_reason}}": rate("guardwire_session_ended_total", "guardwire_end_reason")},
            is_stacked=True,
        ),
    ),
)

LATENCY = Row(
    "Latency, as callers see it",
    (
        Panel(
            "Verdict lag",
            "From the message with a token to the message with its verdict, for a sample of the tokens.",
            SECONDS,
            quantiles("guardwire_token_verdict_lag_seconds"),
        ),
        Panel(
            "Time to prompt verdict",
            "From a stream's open to the verdict on its prompt, most of which is reading the conversation.",
            SECONDS,
            quantiles("guardwire_stream_time_to_prompt_verdict_seconds"),
        ),
        Panel(
            "Duration of calls",
            "What half, and 99 of 100 calls of a method do not exceed. Streams last as long as the answers they judge.",
            SECONDS,
            {
                f"p{share * 100:g} {{{{method}}}}": with_method(quantile(share, CALL_DURATION, "rpc_method", CALLS))
                for share in (0.5, 0.99)
            },
        ),
        Panel(
            "Queue wait",
            "How long sequences with pending tokens wait for a step: the first sign of too much work.",
            SECONDS,
            quantiles("guardwire_step_queue_wait_seconds", "guardwire_model_kind"),
            width=24,
        ),
    ),
)

ENGINE = Row(
    "Engine",
    (
        Panel(
            "Duration of steps",
            "What one pass over the batch takes.",
            SECONDS,
            quantiles("guardwire_step_duration_seconds", "guardwire_model_kind"),
        ),
        Panel(
            "Steps",
            "Engine steps a second. A server of streams steps every few seconds even without traffic.",
            "count:steps/s",
            {"{{guardwire_model_kind}}": rate("guardwire_step_duration_seconds_count", "guardwire_model_kind")},
        ),
        Panel(
            "Sequences of a step",
            "How many streams or Classify calls share a step: the mean, and what 99 of 100 steps do not exceed.",
            COUNT,
            {
                "mean {{guardwire_model_kind}}": mean("guardwire_step_sequences", "guardwire_model_kind"),
                "p99 {{guardwire_model_kind}}": quantile(0.99, "guardwire_step_sequences", "guardwire_model_kind"),
            },
        ),
        Panel(
            "Tokens of a step",
            "How many tokens go through the model at once: the mean, and what 99 of 100 steps do not exceed.",
            COUNT,
            {
                "mean {{guardwire_model_kind}}": mean("guardwire_step_tokens", "guardwire_model_kind"),
                "p99 {{guardwire_model_kind}}": quantile(0.99, "guardwire_step_tokens", "guardwire_model_kind"),
            },
        ),
        Panel(
            "Tokens that wait",
            "Tokens accepted and not computed yet, as of the last step.",
            COUNT,
            {"{{guardwire_model_kind}}": f"sum by (guardwire_model_kind) (guardwire_token_pending{{{HERE}}})"},
        ),
        Panel(
            "Key-value arena in use",
            "Share of the memory for cached keys and values that is taken, on the fullest server. Classify keeps "
            "prompts that may come again until the room is needed, so a full arena is nothing bad by itself.",
            SHARE,
            {"{{guardwire_model_kind}}": f"max by (guardwire_model_kind) (guardwire_kv_arena_used_ratio{{{HERE}}})"},
        ),
        Panel(
            "Evictions",
            "Idle sequences that lost their cached keys and values to others, a second.",
            "count:evictions/s",
            {"{{guardwire_model_kind}}": rate("guardwire_kv_arena_evictions_total", "guardwire_model_kind")},
            width=12,
        ),
        Panel(
            "Tokens computed again, for each token judged",
            "What evictions cost: tokens of streams that are read a second time, for every new one. Above 0.5 the "
            "cache is too small for the conversations.",
            COUNT,
            {
                "computed again": rate(
                    "guardwire_kv_arena_reprefilled_tokens_total", selector=f'guardwire_model_kind="stream", {HERE}'
                )
                + f" / {rate('guardwire_token_judged_total')}"
            },
            width=12,
        ),
    ),
)
