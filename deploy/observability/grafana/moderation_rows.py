"""What was judged and decided, what was refused, and what protects the server."""

from deploy.observability.grafana.panel import (
    CALL_DURATION,
    CLASSIFY,
    COUNT,
    DAYS,
    HERE,
    SECONDS,
    SHARE,
    TIME,
    Panel,
    Row,
    quantile,
    quantiles,
    rate,
)

_RISKY = f'guardwire_action!="allow", {HERE}'
_CLASSIFY_TOKENS = "guardwire_classify_tokens_total"
_RELOADS = f"guardwire_config_reloads_total{{{HERE}}}"
# `increase` does not see the first event, with which the counter begins.
_RELOADED = f"({_RELOADS} unless {_RELOADS} offset $__range) or increase({_RELOADS}[$__range])"
_BY_RELOAD = "guardwire_setting, guardwire_outcome"

MODERATION = Row(
    "Moderation",
    (
        Panel(
            "Tokens by risk level",
            "Tokens of answers by what the stream model says of each, before any policy.",
            "count:tokens/s",
            {"{{guardwire_risk_level}}": rate("guardwire_token_judged_total", "guardwire_risk_level")},
            is_stacked=True,
        ),
        Panel(
            "Decisions by action",
            "What policies made of verdicts, by whose text it was. A stream decides whenever its action rises, "
            "Classify always.",
            "count:decisions/s",
            {
                "{{guardwire_role}} {{guardwire_action}}": rate(
                    "guardwire_decision_taken_total", "guardwire_role, guardwire_action"
                )
            },
        ),
        Panel(
            "Flags and blocks by category",
            "What was flagged or blocked for.",
            "count:decisions/s",
            {"{{guardwire_category}}": rate("guardwire_decision_taken_total", "guardwire_category", _RISKY)},
            is_stacked=True,
        ),
        Panel(
            "Flags and blocks: enforced, or only observed",
            "Not enforced are those of policies and streams that only observe: callers are told, and nothing follows.",
            "count:decisions/s",
            {"enforced: {{guardwire_enforced}}": rate("guardwire_decision_taken_total", "guardwire_enforced", _RISKY)},
            width=12,
        ),
        Panel(
            "Decisions without a verdict",
            "What could not be judged, so that on_error of the policy decided.",
            "count:decisions/s",
            {
                "{{guardwire_action}}": rate(
                    "guardwire_decision_taken_total", "guardwire_action", f'guardwire_risk_level="not_judged", {HERE}'
                )
            },
            width=12,
        ),
    ),
)

CLASSIFY_CALLS = Row(
    "Classify",
    (
        Panel(
            "Duration of Classify",
            "From the call to its answer, refused calls left out.",
            SECONDS,
            quantiles(CALL_DURATION, selector=f'rpc_response_status_code=~"OK|DEADLINE_EXCEEDED", {CLASSIFY}'),
        ),
        Panel(
            "Passes of a call",
            "Forward passes that a call took part in: one to three where the answer was guessed, up to one for each of "
            "its tokens where it was not.",
            COUNT,
            {
                "mean": f"{rate('guardwire_classify_passes_sum')} / {rate('guardwire_classify_passes_count')}",
                "p99": quantile(0.99, "guardwire_classify_passes"),
            },
        ),
        Panel(
            "Prompt tokens that were read before",
            "Share of the tokens of prompts whose keys and values were copied from an earlier prompt that began alike.",
            SHARE,
            {
                "reused": rate(_CLASSIFY_TOKENS, selector=f'guardwire_prefix="reused", {HERE}')
                + f" / {rate(_CLASSIFY_TOKENS)}"
            },
        ),
    ),
)

SECURITY = Row(
    "Limits and security",
    (
        Panel(
            "Refused, by reason",
            "Calls and streams refused, by the reason that their callers were given.",
            "count:refusals/s",
            {"{{guardwire_reason}}": rate("guardwire_request_rejected_total", "guardwire_reason")},
            is_stacked=True,
        ),
        Panel(
            "Refused, by tenant",
            "Calls and streams refused, by whose they were; without a name where callers are not told apart.",
            "count:refusals/s",
            {"{{guardwire_tenant}}": rate("guardwire_request_rejected_total", "guardwire_tenant")},
            is_stacked=True,
        ),
        Panel(
            "Streams opened, by tenant",
            "Streams admitted, by whose they are.",
            "count:streams/s",
            {"{{guardwire_tenant}}": rate("guardwire_session_opened_total", "guardwire_tenant")},
            is_stacked=True,
        ),
        Panel(
            "Changed files",
            "Changes of certificates, access rules and policies within the time shown, taken or refused. A refused one "
            "leaves the old content in force, and the log says why.",
            COUNT,
            {"{{guardwire_setting}} {{guardwire_outcome}}": f"sum by ({_BY_RELOAD}) ({_RELOADED})"},
            kind="stat",
            width=6,
        ),
        Panel(
            "Files that are refused",
            "On how many servers what a file says now is not in force, because it has a mistake.",
            COUNT,
            {"{{guardwire_setting}}": f"sum by (guardwire_setting) (guardwire_config_refused{{{HERE}}})"},
            kind="stat",
            width=6,
            thresholds=((1, "red"),),
        ),
        Panel(
            "Certificate",
            "Days until the first of the servers' TLS certificates expires.",
            DAYS,
            {"days left": f"(min(guardwire_tls_certificate_expiry_seconds{{{HERE}}}) - time()) / 86400"},
            kind="stat",
            width=6,
            color="red",
            thresholds=((3, "orange"), (14, "green")),
        ),
        Panel(
            "Youngest server",
            "When the server that was started last was started.",
            TIME,
            {"started": f"1000 * max(guardwire_process_start_time_seconds{{{HERE}}})"},
            kind="stat",
            width=6,
        ),
    ),
)
