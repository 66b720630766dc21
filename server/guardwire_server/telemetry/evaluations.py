"""Decisions as events of OpenTelemetry's log: `gen_ai.evaluation.result`, correlated with the span of their call.

Source: the event and its attributes in the semantic conventions for generative AI (in development); what they have no
attribute for is our own. An explanation is not among them: it is for people, and for what was not judged it quotes the
error.
"""

import time
from dataclasses import dataclass

from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, set_span_in_context

from guardwire_server.core.policy import Action, Decision, DecisionReason
from guardwire_server.core.verdict import Category, RiskLevel, Role
from guardwire_server.telemetry import names


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Whose text was judged, and by what: none of it is the caller's own words.

    `policy` and `model` are names that this server has, not those that a request asked for.
    """

    policy: str
    model: str
    session_id: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found. `score` is the probability of `risk_level`, where one is known; None for a level: not judged."""

    action: Action
    reason: DecisionReason
    role: Role
    risk_level: RiskLevel | None = None
    category: Category | None = None
    score: float | None = None
    token_index: int | None = None
    cut_index: int | None = None
    enforced: bool = True

    @property
    def labels(self) -> dict[str, str | bool]:
        """What its count, its span and its event all say."""
        return {
            names.ACTION: self.action.name.lower(),
            names.CATEGORY: self.category.name.lower() if self.category else "none",
            names.ROLE: self.role.name.lower(),
            names.ENFORCED: self.enforced,
        }

    @classmethod
    def of(cls, decision: Decision, *, enforced: bool, score: float | None = None) -> "Evaluation":
        """What a stream's decision says."""
        return cls(
            action=decision.action,
            reason=decision.reason,
            role=decision.role,
            risk_level=decision.risk_level,
            category=decision.category,
            score=score,
            token_index=decision.token_index,
            cut_index=decision.cut_index,
            enforced=enforced,
        )


class EvaluationEvents:
    """Emits evaluations; with a provider that does nothing it costs next to nothing. Any thread."""

    def __init__(self, logger_provider: LoggerProvider, version: str) -> None:
        self._logger = logger_provider.get_logger(names.SCOPE, version)

    def emit(self, evaluation: Evaluation, evaluated: Evaluated, span_context: SpanContext | None) -> None:
        """Emits one event, correlated with the span given and no other."""
        if not self._logger.enabled(event_name=names.EVALUATION_EVENT):
            return
        # A context without any span would be taken for "not given", and the span that is current here for the call's.
        span = INVALID_SPAN if span_context is None else NonRecordingSpan(span_context)
        self._logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                context=set_span_in_context(span, Context()),
                severity_number=SeverityNumber.INFO,
                severity_text="INFO",
                event_name=names.EVALUATION_EVENT,
                attributes=_attributes(evaluation, evaluated),
            )
        )


def _attributes(evaluation: Evaluation, evaluated: Evaluated) -> dict[str, str | bool | int | float]:
    level = evaluation.risk_level
    is_judged = evaluation.reason is DecisionReason.VERDICT
    values: dict[str, str | bool | int | float | None] = {
        names.EVALUATION_NAME: f"{names.SCOPE}.{evaluated.policy}",
        names.EVALUATION_LABEL: level.name.lower() if level and is_judged else None,
        names.EVALUATION_SCORE: evaluation.score if is_judged else None,
        names.ERROR_TYPE: None if is_judged else evaluation.reason.value,
        names.REQUEST_MODEL: evaluated.model,
        names.POLICY: evaluated.policy,
        **evaluation.labels,
        names.TOKEN_INDEX: evaluation.token_index,
        names.CUT_INDEX: evaluation.cut_index,
        names.SESSION_ID: evaluated.session_id,
        names.TENANT: evaluated.tenant,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}
