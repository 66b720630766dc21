"""The answer of Qwen3Guard-Gen: its grammar, and nothing but its grammar.

    Safety: Safe|Controversial|Unsafe
    Categories: None | one category | several, separated by commas
    Refusal: Yes|No                      (when an answer was judged)

Source: the output format in the checkpoint's chat template. Whatever else a model says was not a judgement, and what
was not judged is never safe: `parse_answer` then raises.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from guardwire_server.core.verdict import CATEGORY_NAMES, Category, RiskLevel

MAX_ANSWER_TOKENS = 128
"""The longest answer that is generated (the model cards' `max_new_tokens`); a whole one has 8 to 14."""

_RISK_LEVELS = {"Safe": RiskLevel.SAFE, "Controversial": RiskLevel.CONTROVERSIAL, "Unsafe": RiskLevel.UNSAFE}
_CATEGORIES = {name: category for category, name in CATEGORY_NAMES.items()}
_REFUSALS = {"Yes": True, "No": False}

_T = TypeVar("_T")


class UnparsableAnswer(ValueError):
    """The model's answer does not follow the grammar; the message says where."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. `refusal` is None when it was not asked."""

    risk_level: RiskLevel
    categories: tuple[Category, ...]
    refusal: bool | None


def answer_texts(*, expects_refusal: bool) -> Iterator[str]:
    """The answers of the grammar with at most one category, the likeliest first."""
    refusals = ("\nRefusal: No", "\nRefusal: Yes") if expects_refusal else ("",)
    yield from (f"Safety: Safe\nCategories: None{refusal}" for refusal in refusals)
    for level in ("Unsafe", "Controversial"):
        for name in _CATEGORIES:
            yield from (f"Safety: {level}\nCategories: {name}{refusal}" for refusal in refusals)


def parse_answer(text: str, *, expects_refusal: bool) -> Answer:
    """Reads a whole answer.

    Args:
        text: The generated text without control tokens; white space around it does not count.
        expects_refusal: Whether an answer was judged. Otherwise a Refusal line is passed over: some builds add one
            that was not asked for.

    Raises:
        UnparsableAnswer: On anything else than the grammar, a safe text with a category included.
    """
    lines = text.strip().split("\n")
    risk_level = _value(lines, 0, "Safety", _RISK_LEVELS)
    categories = _parse_categories(_field(lines, 1, "Categories"))
    if risk_level is RiskLevel.SAFE and categories:
        raise UnparsableAnswer("Safety is Safe, but Categories is not None")
    if len(lines) > 3:
        raise UnparsableAnswer(f"{len(lines)} lines instead of at most 3")
    refusal = _value(lines, 2, "Refusal", _REFUSALS) if expects_refusal or len(lines) == 3 else None
    return Answer(risk_level, categories, refusal if expects_refusal else None)


def _field(lines: list[str], index: int, name: str) -> str:
    prefix = f"{name}: "
    if index >= len(lines) or not lines[index].startswith(prefix):
        raise UnparsableAnswer(f"line {index + 1} is not '{prefix}…'")
    return lines[index].removeprefix(prefix).rstrip()


def _value(lines: list[str], index: int, name: str, values: Mapping[str, _T]) -> _T:
    word = _field(lines, index, name)
    if word not in values:
        raise UnparsableAnswer(f"{name} is none of {', '.join(values)}")
    return values[word]


def _parse_categories(text: str) -> tuple[Category, ...]:
    if text == "None":
        return ()
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in _CATEGORIES:
            raise UnparsableAnswer("Categories holds a name that is none of the nine")
    return tuple(_CATEGORIES[name] for name in dict.fromkeys(names))
