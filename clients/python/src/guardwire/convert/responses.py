"""From the server's protobuf messages to results."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import NamedTuple

import grpc

from guardwire.convert.server_info import limits
from guardwire.convert.values import members, optional, required, seconds
from guardwire.enums import Action, Category, DecisionReason, EndReason, Refusal, RiskLevel, Role
from guardwire.errors import ErrorDetails, FieldViolation, GuardwireError, broken_contract, from_status
from guardwire.results import (
    Classification,
    ClassifyUsage,
    Decision,
    Draining,
    PromptVerdict,
    RiskProbabilities,
    RolledBack,
    StreamOpened,
    Summary,
    TokenVerdicts,
    Update,
)
from guardwire.v1 import moderation_pb2 as pb

_STATUS_BY_NUMBER = {status.value[0]: status for status in grpc.StatusCode if status is not grpc.StatusCode.OK}


class PackedVerdict(NamedTuple):
    """The verdict on one token as it came packed with those of other streams: numbers that nobody has checked."""

    token_index: int
    risk_level: int
    safe_probability: float
    controversial_probability: float
    unsafe_probability: float
    category: int
    category_probability: float


def classification(response: pb.ClassifyResponse) -> Classification:
    """Raises ServerFault when it names no action, or an enum number that this version does not know."""
    return Classification(
        judged=response.judged,
        risk_level=optional(RiskLevel, response.risk_level),
        categories=members(Category, response.categories),
        refusal=optional(Refusal, response.refusal),
        probabilities=_probabilities(response.probabilities if response.HasField("probabilities") else None),
        action=required(Action, response.action),
        reason=optional(DecisionReason, response.reason),
        explanation=response.explanation,
        answer=response.answer,
        model=response.model,
        model_revision=response.model_revision,
        policy=response.policy,
        usage=ClassifyUsage(
            response.usage.num_prompt_tokens,
            response.usage.num_answer_tokens,
            response.usage.num_forward_passes,
            seconds(response.usage.duration),
        ),
        enforced=not response.observed_only,
    )


def opened(message: pb.StreamOpened) -> StreamOpened:
    """Reads what a stream was opened with."""
    return StreamOpened(
        message.session_id,
        message.model,
        message.model_revision,
        message.policy,
        message.num_prompt_tokens,
        message.num_tokens_left,
        limits(message.limits),
    )


def update(response: pb.ModerateStreamResponse) -> Update | None:
    """Reads everything but `opened`; None for what this version does not know.

    Raises:
        ServerFault: A decision names no action, an enum number is unknown, or parallel arrays differ in length.
    """
    match response.WhichOneof("response"):
        case "prompt_verdict":
            return _prompt_verdict(response.prompt_verdict)
        case "verdicts":
            return _verdicts(response.verdicts)
        case "decision":
            return _decision(response.decision)
        case "rolled_back":
            action = optional(Action, response.rolled_back.action)
            return RolledBack(response.rolled_back.num_tokens_kept, action)
        case "draining":
            return _draining(response.draining)
        case "summary":
            return _summary(response.summary)
        case _:
            return None


def packed_verdicts(message: pb.StepVerdicts) -> Iterator[tuple[int, PackedVerdict]]:
    """Takes packed verdicts apart: each with the id of its stream, in their order.

    Raises:
        ServerFault: The packed fields differ in length: nobody knows whose verdict is whose.
    """
    stream_ids = message.stream_ids
    columns = (
        message.token_indices,
        message.risk_levels,
        message.safe_probabilities,
        message.controversial_probabilities,
        message.unsafe_probabilities,
        message.categories,
        message.category_probabilities,
    )
    if any(len(column) != len(stream_ids) for column in columns):
        raise broken_contract("the server sent packed verdicts whose arrays differ in length")
    return zip(stream_ids, map(PackedVerdict, *columns), strict=True)


def packed_verdict(verdict: PackedVerdict) -> TokenVerdicts:
    """Reads what a `verdicts` message of one token would say; raises ServerFault when an enum number is unknown."""
    return TokenVerdicts(
        start_index=verdict.token_index,
        risk_levels=(optional(RiskLevel, verdict.risk_level),),
        safe_probabilities=(verdict.safe_probability,),
        controversial_probabilities=(verdict.controversial_probability,),
        unsafe_probabilities=(verdict.unsafe_probability,),
        categories=(optional(Category, verdict.category),),
        category_probabilities=(verdict.category_probability,),
        text_end_offsets=(),
        scaffold=(),
    )


def stream_error(message: pb.StreamError) -> GuardwireError:
    """Reads the end of one stream among many as the error that a call of its own would have raised."""
    violations = (FieldViolation(message.field, message.message),) if message.field else ()
    code = _STATUS_BY_NUMBER.get(message.code, grpc.StatusCode.UNKNOWN)
    retry_after_s = seconds(message.retry_delay) if message.HasField("retry_delay") else None
    details = ErrorDetails(message.reason, violations, retry_after_s, message.request_id)
    return from_status(code, message.message, details)


def _draining(message: pb.Draining) -> Draining:
    return Draining(message.deadline.ToDatetime(datetime.UTC) if message.HasField("deadline") else None)


def _probabilities(message: pb.RiskProbabilities | None) -> RiskProbabilities | None:
    return None if message is None else RiskProbabilities(message.safe, message.controversial, message.unsafe)


def _prompt_verdict(message: pb.PromptVerdict) -> PromptVerdict:
    return PromptVerdict(
        optional(RiskLevel, message.risk_level),
        optional(Category, message.category),
        _probabilities(message.probabilities if message.HasField("probabilities") else None),
        message.category_probability,
        message.turn,
    )


def _verdicts(message: pb.Verdicts) -> TokenVerdicts:
    verdicts = TokenVerdicts(
        message.start_index,
        tuple(optional(RiskLevel, number) for number in message.risk_levels),
        tuple(message.safe_probabilities),
        tuple(message.controversial_probabilities),
        tuple(message.unsafe_probabilities),
        tuple(optional(Category, number) for number in message.categories),
        tuple(message.category_probabilities),
        tuple(message.text_end_offsets),
        tuple(message.scaffold),
    )
    parallel = (
        verdicts.safe_probabilities,
        verdicts.controversial_probabilities,
        verdicts.unsafe_probabilities,
        verdicts.categories,
        verdicts.category_probabilities,
    )
    left_out_or_full = (0, len(verdicts))
    if any(len(values) != len(verdicts) for values in parallel) or (
        len(verdicts.text_end_offsets) not in left_out_or_full or len(verdicts.scaffold) not in left_out_or_full
    ):
        raise broken_contract("the server sent verdicts whose arrays differ in length")
    return verdicts


def _decision(message: pb.Decision) -> Decision:
    return Decision(
        action=required(Action, message.action),
        role=optional(Role, message.role),
        turn=message.turn,
        token_index=message.token_index,
        cut_index=message.cut_index,
        cut_text_offset=message.cut_text_offset if message.HasField("cut_text_offset") else None,
        risk_level=optional(RiskLevel, message.risk_level),
        category=optional(Category, message.category),
        reason=optional(DecisionReason, message.reason),
        explanation=message.explanation,
        enforced=message.enforced,
    )


def _summary(message: pb.Summary) -> Summary:
    return Summary(
        end_reason=optional(EndReason, message.end_reason),
        prompt_verdict=_prompt_verdict(message.prompt_verdict) if message.HasField("prompt_verdict") else None,
        risk_level=optional(RiskLevel, message.risk_level),
        category=optional(Category, message.category),
        action=optional(Action, message.action),
        num_tokens=message.num_tokens,
        num_safe_tokens=message.num_safe_tokens,
        num_controversial_tokens=message.num_controversial_tokens,
        num_unsafe_tokens=message.num_unsafe_tokens,
        time_to_prompt_verdict_s=seconds(message.time_to_prompt_verdict),
        duration_s=seconds(message.duration),
    )
