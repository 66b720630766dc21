"""What is said about texts: risk levels, categories and verdicts, in one canonical order.

The numbers are those of the wire (protos/guardwire/v1/moderation.proto) and of every array in this project; a
checkpoint's own label order is translated once, when it is loaded.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
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


_SAFE = int(RiskLevel.SAFE)  # a plain number compares several times as fast

VerdictRow = tuple[int, float, float, float, int, float]
"""A verdict in plain numbers: level; probabilities of safe, controversial, unsafe; category or 0; its probability."""


class VerdictArrays:
    """The verdicts on consecutive tokens, packed: one entry a token, in token order. Nobody changes them once made.

    A slice is a view: a step's verdicts are packed once, and dealing them out to its sequences copies none of them.
    """

    __slots__ = ("_columns", "_start", "_stop")

    def __init__(
        self,
        risk_levels: "array[int]",
        probabilities: "array[float]",
        categories: "array[int]",
        category_probabilities: "array[float]",
    ) -> None:
        """Takes the arrays over.

        Args:
            risk_levels: "B", RiskLevel values.
            probabilities: "f", three entries a token: safe, controversial, unsafe.
            categories: "B", Category values, or 0 where the level is SAFE.
            category_probabilities: "f", the probability of that category, or 0.0.
        """
        self._columns = risk_levels, probabilities, categories, category_probabilities
        self._start, self._stop = 0, len(risk_levels)

    @property
    def risk_levels(self) -> "array[int]":
        """RiskLevel values ("B")."""
        return self._columns[0][self._start : self._stop]

    @property
    def probabilities(self) -> "array[float]":
        """Three entries a token ("f"): safe, controversial, unsafe."""
        return self._columns[1][3 * self._start : 3 * self._stop]

    @property
    def categories(self) -> "array[int]":
        """Category values, or 0 where the level is SAFE ("B")."""
        return self._columns[2][self._start : self._stop]

    @property
    def category_probabilities(self) -> "array[float]":
        """The probability of the category, or 0.0 ("f")."""
        return self._columns[3][self._start : self._stop]

    def __len__(self) -> int:
        return self._stop - self._start

    def __eq__(self, other: object) -> bool:
        """Whether the same is said of as many tokens."""
        return isinstance(other, VerdictArrays) and self._arrays() == other._arrays()

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Verdict:
        """The verdict on the token at `index`, 0 to len - 1."""
        level, safe, controversial, unsafe, category, category_probability = self.row(index)
        return Verdict(
            risk_level=RiskLevel(level),
            category=Category(category) if category else None,
            probabilities=RiskProbabilities(safe, controversial, unsafe),
            category_probability=category_probability,
        )

    def row(self, index: int) -> VerdictRow:
        """The same in plain numbers."""
        levels, probabilities, categories, category_probabilities = self._columns
        entry = self._start + index
        safe, controversial, unsafe = probabilities[3 * entry : 3 * entry + 3]
        return levels[entry], safe, controversial, unsafe, categories[entry], category_probabilities[entry]

    def safe_marks(self) -> list[bool]:
        """Whether the verdict is SAFE, for each token."""
        return [level == _SAFE for level in self.risk_levels]

    def count_by_level(self) -> tuple[int, int, int]:
        """How many are SAFE, CONTROVERSIAL and UNSAFE."""
        levels = self.risk_levels.tobytes()
        return levels.count(RiskLevel.SAFE), levels.count(RiskLevel.CONTROVERSIAL), levels.count(RiskLevel.UNSAFE)

    @classmethod
    def join(cls, parts: "Sequence[VerdictArrays]") -> "VerdictArrays":
        """The verdicts of all parts, one part after another."""
        levels, probabilities, categories, category_probabilities = array("B"), array("f"), array("B"), array("f")
        for part in _merge_neighbours(parts):
            levels.extend(part.risk_levels)
            probabilities.extend(part.probabilities)
            categories.extend(part.categories)
            category_probabilities.extend(part.category_probabilities)
        return cls(levels, probabilities, categories, category_probabilities)

    def slice(self, start: int, stop: int) -> "VerdictArrays":
        """The verdicts on tokens `start` to `stop` - 1, with 0 <= start <= stop <= len: a view."""
        part = VerdictArrays.__new__(VerdictArrays)
        part._columns = self._columns
        part._start, part._stop = self._start + start, self._start + stop
        return part

    def _arrays(self) -> "tuple[array[int], array[float], array[int], array[float]]":
        return self.risk_levels, self.probabilities, self.categories, self.category_probabilities


def _merge_neighbours(parts: "Iterable[VerdictArrays]") -> "Iterator[VerdictArrays]":
    """The same verdicts in fewer parts: slices of one whole that follow each other become one, as in a step's."""
    last: VerdictArrays | None = None
    for part in parts:
        if last is not None and part._columns is last._columns and part._start == last._stop:
            last._stop = part._stop
            continue
        if last is not None:
            yield last
        last = part.slice(0, len(part))  # not the caller's own, which nobody changes
    if last is not None:
        yield last
