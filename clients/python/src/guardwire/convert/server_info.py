"""From the server's description of itself to `ServerInfo`."""

from __future__ import annotations

from guardwire.convert.values import members, optional, required, seconds
from guardwire.enums import Action, Category, Debounce, ModelKind, Strictness
from guardwire.server_info import Limits, Load, ModelInfo, PolicyInfo, ServerInfo, TurnPolicy
from guardwire.v1 import moderation_pb2 as pb


def server_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Raises ServerFault for an enum number that this version does not know."""
    load = response.load
    return ServerInfo(
        version=response.version,
        models=tuple(_model(model) for model in response.models),
        policies=tuple(_policy(policy) for policy in response.policies),
        limits=limits(response.limits),
        load=Load(
            load.num_sessions,
            load.num_classify_calls,
            load.num_pending_tokens,
            load.kv_arena_used,
            load.num_steps,
            load.num_step_sequences,
            load.num_step_tokens,
        ),
        policies_version=response.policies_version,
    )


def limits(message: pb.Limits) -> Limits:
    """Reads the limits on requests."""
    return Limits(
        message.max_sessions,
        message.max_classify_calls,
        message.max_tokens_per_message,
        message.max_message_bytes,
        message.max_messages,
        seconds(message.idle_timeout),
        seconds(message.max_lifetime),
        seconds(message.write_timeout),
    )


def _model(message: pb.ModelInfo) -> ModelInfo:
    return ModelInfo(
        kind=optional(ModelKind, message.kind),
        name=message.name,
        revision=message.revision,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocabulary_size=message.vocabulary_size,
        max_context_tokens=message.max_context_tokens,
        prompt_categories=members(Category, message.prompt_categories),
        response_categories=members(Category, message.response_categories),
        dtype=message.dtype,
        device=message.device,
        demo=message.demo,
    )


def _policy(message: pb.PolicyInfo) -> PolicyInfo:
    return PolicyInfo(
        name=message.name,
        description=message.description,
        strictness=optional(Strictness, message.strictness),
        debounce=optional(Debounce, message.debounce),
        min_probability=message.min_probability,
        user=_turn_policy(message.user),
        assistant=_turn_policy(message.assistant),
        on_error=optional(Action, message.on_error),
        observe_only=message.observe_only,
    )


def _turn_policy(message: pb.TurnPolicy) -> TurnPolicy:
    return TurnPolicy(
        unsafe=optional(Action, message.unsafe),
        controversial=optional(Action, message.controversial),
        categories=tuple(
            (required(Category, own.category), required(Action, own.action)) for own in message.categories
        ),
    )
