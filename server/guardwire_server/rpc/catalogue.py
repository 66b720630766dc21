"""What this server offers: its models, policies and limits, as requests may name them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from guardwire_server.core.errors import NotServed, UnknownName, WrongState
from guardwire_server.core.policy import Policy
from guardwire_server.core.policy_set import DEFAULT_POLICY, PolicySet
from guardwire_server.core.verdict import Category

MAX_NAMES_TOLD = 16
"""In a status message, for which gRPC has 8 KiB together with the rest of the trailers."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model, as GetServerInfo tells it; `tokenizer_json` is the file for GetTokenizer."""

    name: str
    revision: str
    tokenizer_fingerprint: str
    tokenizer_json: bytes
    vocabulary_size: int
    max_context_tokens: int
    prompt_categories: tuple[Category, ...]
    response_categories: tuple[Category, ...]
    dtype: str
    device: str
    is_demo: bool


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits on requests; protos/guardwire/v1/moderation.proto, message Limits, says what each is."""

    max_sessions: int
    max_classify_calls: int
    max_tokens_per_message: int
    max_message_bytes: int
    max_messages: int
    idle_timeout_s: float
    max_lifetime_s: float
    write_timeout_s: float


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a request can name. Immutable but for `policies`, which gives those that are in force now."""

    version: str
    stream_model: ServedModel | None
    gen_model: ServedModel | None
    policies: Callable[[], PolicySet]
    limits: RequestLimits

    def policy(self, name: str, field: str) -> Policy:
        """The policy of that name, or the default one for an empty name.

        Raises:
            UnknownName: If there is none.
        """
        policies = self.policies().policies
        policy = policies.get(name or DEFAULT_POLICY)
        if policy is None:
            others = f" and {len(policies) - MAX_NAMES_TOLD} more" if len(policies) > MAX_NAMES_TOLD else ""
            names = ", ".join(islice(policies, MAX_NAMES_TOLD))
            raise UnknownName("UNKNOWN_POLICY", field, f"no such policy; there are {names}{others}")
        return policy

    def require_stream_model(self) -> ServedModel:
        """The stream model; raises NotServed if there is none."""
        if self.stream_model is None:
            raise NotServed("MODEL_NOT_SERVED", "", "this server has no stream model")
        return self.stream_model

    def require_gen_model(self) -> ServedModel:
        """The generative model; raises NotServed if there is none."""
        if self.gen_model is None:
            raise NotServed("MODEL_NOT_SERVED", "", "this server has no generative model")
        return self.gen_model


def check_model_name(model: ServedModel, name: str, field: str) -> None:
    """Raises UnknownName unless the name is empty or the model's."""
    if name and name != model.name:
        raise UnknownName("UNKNOWN_MODEL", field, f"no such model; this server has {model.name}")


def check_fingerprint(model: ServedModel, fingerprint: str, field: str) -> None:
    """Raises WrongState unless the fingerprint is empty or that of the model's tokenizer."""
    if fingerprint and fingerprint != model.tokenizer_fingerprint:
        raise WrongState(
            "FOREIGN_TOKENIZER",
            field,
            f"not the tokenizer of {model.name}, whose fingerprint is {model.tokenizer_fingerprint}; "
            "GetTokenizer gives it, and streams of INPUT_KIND_TEXT need none",
        )
