"""What is said about texts: risk levels, categories and verdicts, in one canonical order.

The numbers are those of the wire (protos/guardwire/v1/moderation.proto) and of every array in this project; a
checkpoint's own label order is translated once, when it is loaded.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class RiskLevel(IntEnum):
    """How harmful a text is, in rising order."""

    SAFE = 1
    CONTROVERSIAL = 2
    UNSAFE = 3


class Category(IntEnum):
    """What kind of harm a text does: the taxonomy of Qwen3Guard (its technical report, section 2)."""

    VIOLENT = 1
    SEXUAL_CONTENT = 2
    SUICIDE_AND_SELF_HARM = 3
    POLITICALLY_SENSITIVE_TOPICS = 4
    PII = 5
    COPYRIGHT_VIOLATION = 6
    NON_VIOLENT_ILLEGAL_ACTS = 7
    UNETHICAL_ACTS = 8
    JAILBREAK = 9


CATEGORY_NAMES: dict[Category, str] = {
    Category.VIOLENT: "Violent",
    Category.SEXUAL_CONTENT: "Sexual Content or Sexual Acts",
    Category.SUICIDE_AND_SELF_HARM: "Suicide & Self-Harm",
    Category.POLITICALLY_SENSITIVE_TOPICS: "Politically Sensitive Topics",
    Category.PII: "PII (Personally Identifiable Information)",
    Category.COPYRIGHT_VIOLATION: "Copyright Violation",
    Category.NON_VIOLENT_ILLEGAL_ACTS: "Non-violent Illegal Acts",
    Category.UNETHICAL_ACTS: "Unethical Acts",
    Category.JAILBREAK: "Jailbreak",
}
"""How Qwen3Guard-Gen spells the categories in its answers."""


class Role(IntEnum):
    """Who wrote a message."""

    SYSTEM = 1
    USER = 2
    ASSISTANT = 3


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class RiskProbabilities:
    """Probabilities of the three risk levels; they sum to 1."""

    safe: float
    controversial: float
    unsafe: float

    @property
    def risk_level(self) -> RiskLevel:
        """The most probable level; between equals the more harmful one."""
        if self.unsafe >= self.controversial and self.unsafe >= self.safe:
            return RiskLevel.UNSAFE
        return RiskLevel.CONTROVERSIAL if self.controversial >= self.safe else RiskLevel.SAFE

    def of(self, risk_level: RiskLevel) -> float:
        """The probability of one level."""
        return (self.safe, self.controversial, self.unsafe)[risk_level - 1]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says about one text; `category` is None where it is SAFE (the models have no class for none)."""

    risk_level: RiskLevel
    category: Category | None
    probabilities: RiskProbabilities
    category_probability: float


@dataclass(slots=True)  # not frozen, which would make the making several times as slow
class VerdictArrays:
    """The verdicts on consecutive tokens, packed: one entry a token, in token order. Nobody changes them once made.

    `risk_levels` ("B") holds RiskLevel values, `probabilities` ("f") three entries a token (safe, controversial,
    unsafe), `categories` ("B") Category values or 0 where the level is SAFE, `category_probabilities` ("f") the
    probability of that category or 0.0.
    """

    risk_levels: "array[int]"
    probabilities: "array[float]"
    categories: "array[int]"
    category_probabilities: "array[float]"

    def __len__(self) -> int:
        return len(self.risk_levels)

    def __getitem__(self, index: int) -> Verdict:
        """The verdict on the token at `index`, 0 to len - 1."""
        category = self.categories[index]
        return Verdict(
            risk_level=RiskLevel(self.risk_levels[index]),
            category=Category(category) if category else None,
            probabilities=RiskProbabilities(*self.probabilities[3 * index : 3 * index + 3]),
            category_probability=self.category_probabilities[index],
        )

    @classmethod
    def join(cls, parts: "Sequence[VerdictArrays]") -> "VerdictArrays":
        """The verdicts of all parts, one part after another."""
        joined = cls(array("B"), array("f"), array("B"), array("f"))
        for part in parts:
            joined.risk_levels.extend(part.risk_levels)
            joined.probabilities.extend(part.probabilities)
            joined.categories.extend(part.categories)
            joined.category_probabilities.extend(part.category_probabilities)
        return joined

    def slice(self, start: int, stop: int) -> "VerdictArrays":
        """The verdicts on tokens `start` to `stop` - 1; these themselves if that is all, since nobody changes them."""
        if start == 0 and stop == len(self.risk_levels):
            return self
        return VerdictArrays(
            risk_levels=self.risk_levels[start:stop],
            probabilities=self.probabilities[3 * start : 3 * stop],
            categories=self.categories[start:stop],
            category_probabilities=self.category_probabilities[start:stop],
        )
