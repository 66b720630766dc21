"""The core's updates and results as protobuf responses.

The core's enums of levels, categories, actions and roles have the wire's numbers; the others are mapped here.
"""

import time
from collections.abc import Iterable
from functools import cached_property
from typing import cast

from google.protobuf import duration_pb2

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core import events as ev
from guardwire_server.core.errors import CallerError, CapacityError, EngineError, RequestError
from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.policy import Action, Debounce, DecisionReason, Policy, Strictness, TurnRules
from guardwire_server.core.verdict import Category, RiskLevel, RiskProbabilities, Role
from guardwire_server.engine.classifier import Classification
from guardwire_server.rpc.catalogue import Catalogue, RequestLimits, ServedModel
from guardwire_server.rpc.status import STATUS_CODES
from guardwire_server.rpc.verdict_messages import SingleVerdict, write_verdicts

_END_REASONS = {
    ev.EndReason.FINISHED: pb.END_REASON_FINISHED,
    ev.EndReason.BLOCKED: pb.END_REASON_BLOCKED,
}
_DECISION_REASONS = {
    DecisionReason.VERDICT: pb.DECISION_REASON_VERDICT,
    DecisionReason.NOT_JUDGED: pb.DECISION_REASON_NOT_JUDGED,
}
_STRICTNESS = {Strictness.LOOSE: pb.STRICTNESS_LOOSE, Strictness.STRICT: pb.STRICTNESS_STRICT}
_DEBOUNCE = {
    Debounce.SAME_LEVEL: pb.DEBOUNCE_SAME_LEVEL,
    Debounce.ANY_RISK: pb.DEBOUNCE_ANY_RISK,
    Debounce.NONE: pb.DEBOUNCE_NONE,
}
_REFUSALS = {None: pb.REFUSAL_UNSPECIFIED, True: pb.REFUSAL_YES, False: pb.REFUSAL_NO}


class StreamWriter:
    """Writes the updates of one stream as messages. Owner: the call."""

    def __init__(self, session_id: str, model: ServedModel, limits: RequestLimits) -> None:
        self._session_id = session_id
        self._model = model
        self._limits = limits

    @cached_property
    def _single_verdict(self) -> SingleVerdict:
        return SingleVerdict()

    def response(self, update: ev.Update) -> pb.ModerateStreamResponse:
        """One update as one message, which is the caller's until the next call."""
        if isinstance(update, ev.TokenVerdicts) and (single := self._single_verdict.response(update)):
            return single
        response = pb.ModerateStreamResponse()
        self.write(update, response)
        return response

    def write(self, update: ev.Update, response: pb.ModerateStreamResponse) -> None:
        """Writes one update into an empty message, in its place: verdicts are too many to be copied."""
        match update:
            case ev.TokenVerdicts():
                write_verdicts(update, response.verdicts)
            case ev.DecisionTaken():
                response.decision.CopyFrom(_decision(update))
            case ev.PromptVerdict():
                response.prompt_verdict.CopyFrom(_prompt_verdict(update))
            case ev.StreamOpened():
                response.opened.CopyFrom(self._opened(update))
            case ev.RolledBack():
                response.rolled_back.num_tokens_kept = update.num_tokens_kept
                response.rolled_back.action = _action(update.action)
            case ev.DrainingNoted():
                response.draining.deadline.FromNanoseconds(round((time.time() + update.timeout_s) * 1e9))
            case ev.SummaryGiven():
                response.summary.CopyFrom(_summary(update))

    def _opened(self, update: ev.StreamOpened) -> pb.StreamOpened:
        return pb.StreamOpened(
            session_id=self._session_id,
            model=self._model.name,
            model_revision=self._model.revision,
            policy=update.policy_name,
            num_prompt_tokens=update.num_prompt_tokens,
            num_tokens_left=update.num_tokens_left,
            limits=_limits(self._limits),
        )


def stream_error(error: RequestError) -> pb.StreamError:
    """The error that ended one stream of ModerateStreams."""
    return pb.StreamError(
        code=STATUS_CODES[type(error)].value[0],
        message=error.message,
        reason=error.reason,
        field=error.field if isinstance(error, CallerError) else "",
        retry_delay=_duration(error.retry_after_s) if isinstance(error, CapacityError) else None,
        request_id=error.request_id if isinstance(error, EngineError) else "",
    )


def classify_response(result: Classification, model: ServedModel, policy: Policy) -> pb.ClassifyResponse:
    """A classification as the answer of Classify."""
    answer = result.answer
    return pb.ClassifyResponse(
        judged=answer is not None,
        risk_level=_risk_level(answer.risk_level if answer else None),
        categories=_categories(answer.categories if answer else ()),
        refusal=_REFUSALS[answer.refusal if answer else None],
        probabilities=_probabilities(result.probabilities) if result.probabilities else None,
        action=_action(result.action),
        reason=_DECISION_REASONS[result.reason],
        explanation=result.explanation,
        answer=result.text,
        model=model.name,
        model_revision=model.revision,
        policy=policy.name,
        observed_only=policy.observe_only,
        usage=pb.ClassifyUsage(
            num_prompt_tokens=result.num_prompt_tokens,
            num_answer_tokens=result.num_answer_tokens,
            num_forward_passes=result.num_passes,
            duration=_duration(result.duration_s),
        ),
    )


def server_info(
    catalogue: Catalogue, *, num_sessions: int, num_calls: int, stream_load: EngineLoad
) -> pb.GetServerInfoResponse:
    """The catalogue and the load as the answer of GetServerInfo."""
    models = ((catalogue.stream_model, pb.MODEL_KIND_STREAM), (catalogue.gen_model, pb.MODEL_KIND_GEN))
    policy_set = catalogue.policies()
    return pb.GetServerInfoResponse(
        version=catalogue.version,
        models=[_model(model, kind) for model, kind in models if model],
        policies=[_policy(policy) for policy in policy_set.policies.values()],
        policies_version=policy_set.version,
        limits=_limits(catalogue.limits),
        load=pb.Load(
            num_sessions=num_sessions,
            num_classify_calls=num_calls,
            num_pending_tokens=stream_load.num_pending_tokens,
            kv_arena_used=stream_load.arena_used,
            num_steps=stream_load.num_steps,
            num_step_sequences=stream_load.num_step_sequences,
            num_step_tokens=stream_load.num_step_tokens,
        ),
    )


def _decision(update: ev.DecisionTaken) -> pb.Decision:
    decision = update.decision
    return pb.Decision(
        action=_action(decision.action),
        role=cast("pb.Role.ValueType", Role(decision.role).value),
        turn=decision.turn,
        token_index=decision.token_index,
        cut_index=decision.cut_index,
        cut_text_offset=update.cut_text_offset,
        risk_level=_risk_level(decision.risk_level),
        category=_category(decision.category),
        reason=_DECISION_REASONS[decision.reason],
        explanation=decision.explanation,
        enforced=update.enforced,
    )


def _prompt_verdict(update: ev.PromptVerdict) -> pb.PromptVerdict:
    verdict = update.verdict
    return pb.PromptVerdict(
        risk_level=_risk_level(verdict.risk_level),
        category=_category(verdict.category),
        probabilities=_probabilities(verdict.probabilities),
        category_probability=verdict.category_probability,
        turn=update.turn,
    )


def _summary(update: ev.SummaryGiven) -> pb.Summary:
    prompt_s = update.time_to_prompt_verdict_s
    return pb.Summary(
        end_reason=_END_REASONS[update.end_reason],
        prompt_verdict=_prompt_verdict(update.prompt) if update.prompt else None,
        risk_level=_risk_level(update.risk_level),
        category=_category(update.category),
        action=_action(update.action),
        num_tokens=update.num_tokens,
        num_safe_tokens=update.num_tokens_by_level[RiskLevel.SAFE],
        num_controversial_tokens=update.num_tokens_by_level[RiskLevel.CONTROVERSIAL],
        num_unsafe_tokens=update.num_tokens_by_level[RiskLevel.UNSAFE],
        time_to_prompt_verdict=None if prompt_s is None else _duration(prompt_s),
        duration=_duration(update.duration_s),
    )


def _model(model: ServedModel, kind: "pb.ModelKind.ValueType") -> pb.ModelInfo:
    return pb.ModelInfo(
        kind=kind,
        name=model.name,
        revision=model.revision,
        tokenizer_fingerprint=model.tokenizer_fingerprint,
        vocabulary_size=model.vocabulary_size,
        max_context_tokens=model.max_context_tokens,
        prompt_categories=_categories(model.prompt_categories),
        response_categories=_categories(model.response_categories),
        dtype=model.dtype,
        device=model.device,
        demo=model.is_demo,
    )


def _policy(policy: Policy) -> pb.PolicyInfo:
    return pb.PolicyInfo(
        name=policy.name,
        description=policy.description,
        strictness=_STRICTNESS[policy.strictness],
        debounce=_DEBOUNCE[policy.debounce],
        min_probability=policy.min_probability,
        user=_turn_policy(policy.user),
        assistant=_turn_policy(policy.assistant),
        on_error=_action(policy.on_error),
        observe_only=policy.observe_only,
    )


def _turn_policy(rules: TurnRules) -> pb.TurnPolicy:
    return pb.TurnPolicy(
        unsafe=_action(rules.unsafe),
        controversial=_action(rules.controversial),
        categories=[
            pb.CategoryAction(category=_category(category), action=_action(action))
            for category, action in rules.categories.items()
        ],
    )


def _limits(limits: RequestLimits) -> pb.Limits:
    return pb.Limits(
        max_sessions=limits.max_sessions,
        max_classify_calls=limits.max_classify_calls,
        max_tokens_per_message=limits.max_tokens_per_message,
        max_message_bytes=limits.max_message_bytes,
        max_messages=limits.max_messages,
        idle_timeout=_duration(limits.idle_timeout_s),
        max_lifetime=_duration(limits.max_lifetime_s),
        write_timeout=_duration(limits.write_timeout_s),
    )


def _probabilities(probabilities: RiskProbabilities) -> pb.RiskProbabilities:
    return pb.RiskProbabilities(
        safe=probabilities.safe, controversial=probabilities.controversial, unsafe=probabilities.unsafe
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _risk_level(level: RiskLevel | None) -> "pb.RiskLevel.ValueType":
    return cast("pb.RiskLevel.ValueType", level.value if level else 0)


def _category(category: Category | None) -> "pb.Category.ValueType":
    return cast("pb.Category.ValueType", category.value if category else 0)


def _categories(categories: Iterable[Category]) -> "list[pb.Category.ValueType]":
    return [_category(category) for category in categories]


def _action(action: Action | None) -> "pb.Action.ValueType":
    return cast("pb.Action.ValueType", action.value if action else 0)
