"""The contract's vocabulary as Python enums.

Values are the numbers on the wire. The contract's `UNSPECIFIED` has no member: where a result may leave something out,
its field is `None`, so that what was not judged can never be compared with `SAFE`.
"""

from __future__ import annotations

import enum


class _Ordered(enum.Enum):
    """Members compare by their value, with members of the same enum only."""

    def __lt__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self.value < other.value)

    def __le__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bool(self.value <= other.value)


class RiskLevel(_Ordered):
    """How harmful a text is, in rising order."""

    SAFE = 1
    CONTROVERSIAL = 2
    UNSAFE = 3


class Category(enum.Enum):
    """What kind of harm a text does: the taxonomy of Qwen3Guard."""

    UNKNOWN = -1  # a category that a newer server names and this version of the client does not know
    VIOLENT = 1
    SEXUAL_CONTENT = 2
    SUICIDE_AND_SELF_HARM = 3
    POLITICALLY_SENSITIVE_TOPICS = 4
    PII = 5
    COPYRIGHT_VIOLATION = 6
    NON_VIOLENT_ILLEGAL_ACTS = 7
    UNETHICAL_ACTS = 8
    JAILBREAK = 9

    @classmethod
    def _missing_(cls, value: object) -> Category | None:
        return cls.UNKNOWN if isinstance(value, int) and value > 0 else None


class Action(_Ordered):
    """What a policy makes of a verdict, in rising order."""

    ALLOW = 1
    FLAG = 2
    BLOCK = 3


class Role(enum.Enum):
    """Who wrote a message."""

    SYSTEM = 1
    USER = 2
    ASSISTANT = 3


class Refusal(enum.Enum):
    """Whether an answer refuses what was asked."""

    YES = 1
    NO = 2


class Thinking(enum.Enum):
    """Whether the language model writes its reasoning before the answer."""

    OFF = 1
    ON = 2


class InputKind(enum.Enum):
    """What a stream is fed with."""

    TOKENS = 1
    TEXT = 2


class UpdateMode(enum.Enum):
    """Which verdicts a stream sends."""

    EVERY_TOKEN = 1
    ON_CHANGE = 2


class ContextOverflow(enum.Enum):
    """What happens when a conversation outgrows the model's context."""

    FAIL = 1
    SLIDE = 2


class ModelKind(enum.Enum):
    """Which of the two model families a model belongs to."""

    STREAM = 1
    GEN = 2


class Debounce(enum.Enum):
    """When a run of risky tokens counts."""

    SAME_LEVEL = 1
    ANY_RISK = 2
    NONE = 3


class Strictness(enum.Enum):
    """How a policy counts Controversial: as Safe or as Unsafe."""

    LOOSE = 1
    STRICT = 2


class DecisionReason(enum.Enum):
    """Why a decision was taken."""

    VERDICT = 1
    NOT_JUDGED = 2


class EndReason(enum.Enum):
    """Why a stream ended."""

    FINISHED = 1
    BLOCKED = 2
