"""How a stream is to be moderated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from guardwire.enums import ContextOverflow, InputKind, Thinking, UpdateMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ModerateOptions:
    """Everything that `moderate` takes besides the conversation."""

    token_ids: Sequence[int] | None = None
    """The conversation as the ids of the rendered chat template, assistant header included, instead of messages."""
    thinking: Thinking = Thinking.OFF
    """ON when the answer begins with the model's reasoning; its leading `<think>` is pushed then."""
    input: InputKind = InputKind.TOKENS
    """TEXT to push text, which the server tokenises, instead of token ids."""
    policy: str = ""
    """The name of the policy; empty: the server's default."""
    model: str = ""
    """The name of the stream model; empty: the one that the server has."""
    update_mode: UpdateMode = UpdateMode.EVERY_TOKEN
    """ON_CHANGE to hear only of tokens whose risk level or category differs from the one before."""
    end_on_block: bool = False
    """Ends the stream, with a summary, when the policy blocks."""
    observe_only: bool = False
    """Reports decisions without enforcing them: `blocked` stays False and `end_on_block` has no effect."""
    tokenizer_fingerprint: str = ""
    """The fingerprint of the tokenizer that made the ids; another one than the server's is refused."""
    context_overflow: ContextOverflow = ContextOverflow.FAIL
    """What happens when the context is full."""
    resume_from: int = 0
    """How many verdicts the caller has from a stream that broke; the whole answer is to be pushed again."""


class ModerateKeywords(TypedDict, total=False):
    """The fields of `ModerateOptions` as keywords of `moderate`; a test holds the two equal."""

    token_ids: Sequence[int] | None
    thinking: Thinking
    input: InputKind
    policy: str
    model: str
    update_mode: UpdateMode
    end_on_block: bool
    observe_only: bool
    tokenizer_fingerprint: str
    context_overflow: ContextOverflow
    resume_from: int
