"""What a server is, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from guardwire.enums import Action, Category, Debounce, ModelKind, Strictness


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits on requests; 0 where the server does not tell one."""

    max_sessions: int
    max_classify_calls: int
    max_tokens_per_message: int
    max_message_bytes: int
    max_messages: int
    idle_timeout_s: float
    max_lifetime_s: float
    write_timeout_s: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model."""

    kind: ModelKind | None
    name: str
    revision: str
    tokenizer_fingerprint: str
    vocabulary_size: int
    max_context_tokens: int
    prompt_categories: tuple[Category, ...]
    response_categories: tuple[Category, ...]
    dtype: str
    device: str
    demo: bool
    """True for the small checkpoints that come with the server for trying it out."""


@dataclass(frozen=True, slots=True)
class TurnPolicy:
    """What a policy does about one side's text."""

    unsafe: Action | None
    controversial: Action | None
    """None: by the policy's strictness."""
    categories: tuple[tuple[Category, Action], ...]
    """Own actions of categories, for Unsafe."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """One policy: what it makes of verdicts."""

    name: str
    description: str
    strictness: Strictness | None
    debounce: Debounce | None
    min_probability: float
    user: TurnPolicy
    assistant: TurnPolicy
    on_error: Action | None
    observe_only: bool


@dataclass(frozen=True, slots=True)
class Load:
    """The load at one moment."""

    num_sessions: int
    num_classify_calls: int
    num_pending_tokens: int
    kv_arena_used: float
    num_steps: int
    num_step_sequences: int
    num_step_tokens: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is."""

    version: str
    models: tuple[ModelInfo, ...]
    policies: tuple[PolicyInfo, ...]
    limits: Limits
    load: Load
    policies_version: str
    """Changes when any policy does; empty where the server does not tell it."""

    def model(self, kind: ModelKind) -> ModelInfo | None:
        """The model of one kind, or None when the server has none."""
        return next((model for model in self.models if model.kind is kind), None)
