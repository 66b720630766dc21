"""What the server tells, as frozen dataclasses.

A field that is None was left out by the server: a risk level that is None was not judged and is never safe, a category
that is None means that there is none. Durations are seconds, probabilities go from 0 to 1.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from guardwire.enums import Action, Category, DecisionReason, EndReason, Refusal, RiskLevel, Role
from guardwire.server_info import Limits


@dataclass(frozen=True, slots=True)
class RiskProbabilities:
    """The probabilities of the three risk levels; they sum to 1."""

    safe: float
    controversial: float
    unsafe: float


@dataclass(frozen=True, slots=True)
class ClassifyUsage:
    """What one `classify` call cost the server."""

    num_prompt_tokens: int
    num_answer_tokens: int
    num_forward_passes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The verdict on a conversation's last message, and what the policy makes of it."""

    judged: bool
    """False when the model's answer could not be parsed: `action` is then the policy's choice for that case."""
    risk_level: RiskLevel | None
    categories: tuple[Category, ...]
    refusal: Refusal | None
    """Whether the answer refuses; None when the last message is the user's."""
    probabilities: RiskProbabilities | None
    action: Action
    reason: DecisionReason | None
    explanation: str
    answer: str
    """The model's own words."""
    model: str
    model_revision: str
    policy: str
    usage: ClassifyUsage
    enforced: bool
    """False when the policy only observes: `action` is then what it would do."""

    @property
    def blocked(self) -> bool:
        """Whether the text must not be shown."""
        return self.enforced and self.action is Action.BLOCK


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """What a stream was opened with."""

    session_id: str
    model: str
    model_revision: str
    policy: str
    num_prompt_tokens: int
    num_tokens_left: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class PromptVerdict:
    """The verdict on a user message."""

    risk_level: RiskLevel | None
    category: Category | None
    probabilities: RiskProbabilities | None
    category_probability: float
    turn: int
    """Which user message of the stream: 0 for the one that it was opened with."""


@dataclass(frozen=True, slots=True)
class TokenVerdict:
    """The verdict on one token."""

    index: int
    """How many tokens were pushed on the stream before it."""
    risk_level: RiskLevel | None
    probabilities: RiskProbabilities
    category: Category | None
    category_probability: float
    text_end_offset: int | None
    """Where the token ends in all text pushed on the stream, in bytes of UTF-8; None on token streams."""
    scaffold: bool
    """True for `<think>` and the like, which never raise a decision."""


@dataclass(frozen=True, slots=True)
class TokenVerdicts:
    """The verdicts on consecutive tokens, as parallel sequences; iterating gives each as a `TokenVerdict`."""

    start_index: int
    risk_levels: tuple[RiskLevel | None, ...]
    safe_probabilities: tuple[float, ...]
    controversial_probabilities: tuple[float, ...]
    unsafe_probabilities: tuple[float, ...]
    categories: tuple[Category | None, ...]
    category_probabilities: tuple[float, ...]
    text_end_offsets: tuple[int, ...]
    """Empty on token streams."""
    scaffold: tuple[bool, ...]
    """Empty when no token is scaffold."""

    def __len__(self) -> int:
        return len(self.risk_levels)

    def __getitem__(self, position: int) -> TokenVerdict:
        """The verdict at a position in this message, not at an index in the stream."""
        position = range(len(self))[position]
        return TokenVerdict(
            index=self.start_index + position,
            risk_level=self.risk_levels[position],
            probabilities=RiskProbabilities(
                self.safe_probabilities[position],
                self.controversial_probabilities[position],
                self.unsafe_probabilities[position],
            ),
            category=self.categories[position],
            category_probability=self.category_probabilities[position],
            text_end_offset=self.text_end_offsets[position] if self.text_end_offsets else None,
            scaffold=self.scaffold[position] if self.scaffold else False,
        )

    def __iter__(self) -> Iterator[TokenVerdict]:
        return (self[position] for position in range(len(self)))


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy makes of the verdicts, sent whenever it rises."""

    action: Action
    role: Role | None
    """Whose text it is about: USER for a prompt, ASSISTANT for an answer."""
    turn: int
    token_index: int
    """The token at which the decision fell; for prompts the next one to be pushed."""
    cut_index: int
    """The first token that should not be shown: everything before it may be kept."""
    cut_text_offset: int | None
    """On text streams the same place, in bytes of UTF-8 in all text pushed."""
    risk_level: RiskLevel | None
    category: Category | None
    reason: DecisionReason | None
    explanation: str
    enforced: bool
    """False when the stream or the policy only observes."""

    @property
    def blocked(self) -> bool:
        """Whether the text, from `cut_index` on, must not be shown."""
        return self.enforced and self.action is Action.BLOCK


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A rollback is done: later verdicts are about tokens pushed after it."""

    num_tokens_kept: int
    action: Action | None
    """The action in force for the present answer after it."""


@dataclass(frozen=True, slots=True)
class Draining:
    """The server is about to stop: finish here and open the next streams elsewhere."""

    deadline: datetime.datetime | None
    """When open streams will be cut, in UTC."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The end of a stream."""

    end_reason: EndReason | None
    prompt_verdict: PromptVerdict | None
    risk_level: RiskLevel | None
    """Of the present answer under the policy's debounce rule; None when it has no tokens."""
    category: Category | None
    action: Action | None
    """The highest action that was in force for any prompt or answer of the stream."""
    num_tokens: int
    num_safe_tokens: int
    num_controversial_tokens: int
    num_unsafe_tokens: int
    time_to_prompt_verdict_s: float
    duration_s: float


Update = PromptVerdict | TokenVerdicts | Decision | RolledBack | Draining | Summary
"""What iterating a stream gives."""
