"""A pure stand-in for the model: verdicts by a hash of the tokens, a template of a few ids, a tokenizer of characters.

The verdict on a token depends on every token before it, so a token judged in a wrong context is judged wrongly.
Probabilities are multiples of 1/1024, so they survive arrays of 32 bit floats unchanged.
"""

from array import array
from collections.abc import Iterable, Sequence
from zlib import crc32

from guardwire_server.core.events import OpenRequested, RenderedTurn, Thinking
from guardwire_server.core.policy import Policy
from guardwire_server.core.scaffold import Scaffold
from guardwire_server.core.verdict import Category, Message, RiskLevel, RiskProbabilities, Role, Verdict, VerdictArrays

IM_START, IM_END, NEWLINE, THINK, THINK_END = range(1, 6)
FIRST_CHARACTER = 16
_LEVELS = (RiskLevel.SAFE, RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL, RiskLevel.UNSAFE)


def ids(*values: int) -> "array[int]":
    """Token ids."""
    return array("i", values)


def verdict(level: RiskLevel, probability: float = 0.75, category: Category = Category.VIOLENT) -> Verdict:
    """A verdict whose level has that probability, the other two sharing the rest."""
    rest = (1 - probability) / 2
    probabilities = RiskProbabilities(*(probability if level is other else rest for other in RiskLevel))
    is_safe = level is RiskLevel.SAFE
    return Verdict(level, None if is_safe else category, probabilities, 0.0 if is_safe else 0.5)


def packed(verdicts: Iterable[Verdict]) -> VerdictArrays:
    """Verdicts as the engine hands them over."""
    levels, probabilities, categories, category_probabilities = array("B"), array("f"), array("B"), array("f")
    for one in verdicts:
        levels.append(one.risk_level)
        probabilities.extend((one.probabilities.safe, one.probabilities.controversial, one.probabilities.unsafe))
        categories.append(one.category or 0)
        category_probabilities.append(one.category_probability)
    return VerdictArrays(levels, probabilities, categories, category_probabilities)


def unpacked(verdicts: VerdictArrays) -> list[Verdict]:
    """The same one by one."""
    return [verdicts[index] for index in range(len(verdicts))]


def model_verdict(token_ids: Sequence[int], *, is_query: bool = False) -> Verdict:
    """What the model says at the last of these tokens."""
    code = crc32(array("i", token_ids).tobytes(), int(is_query))
    category = Category(1 + (code >> 16) % (9 if is_query else 8))
    return verdict(_LEVELS[code % 4], 0.5 + (code >> 8 & 0xFF) / 512, category)


class FakeRenderer:
    """Implements core.ports.TurnRenderer; every character is a token."""

    scaffold = Scaffold(frozenset((IM_START, IM_END, THINK, THINK_END)), frozenset((NEWLINE,)))

    def prompt(self, messages: Sequence[Message], thinking: Thinking) -> RenderedTurn:
        token_ids = array("i")
        for message in messages:
            token_ids.extend((IM_START, *_characters(message.content), IM_END, NEWLINE))
        query_index = len(token_ids) - 2
        token_ids.extend(_header(thinking))
        return RenderedTurn(token_ids, query_index)

    def user_turn(self, content: "str | array[int]", thinking: Thinking, answer_tail: Sequence[int]) -> RenderedTurn:
        token_ids = array("i", () if tuple(answer_tail[-1:]) == (IM_END,) else (IM_END,))
        token_ids.extend((NEWLINE, IM_START))
        token_ids.extend(_characters(content) if isinstance(content, str) else content)
        token_ids.extend((IM_END, *_header(thinking)))
        return RenderedTurn(token_ids, len(token_ids) - 1 - len(_header(thinking)))

    def find_query_index(self, token_ids: Sequence[int]) -> int | None:
        return max((index for index, token_id in enumerate(token_ids) if token_id == IM_END), default=None)

    def text_stream(self) -> "FakeTextStream":
        return FakeTextStream()


class FakeTextStream:
    """Implements core.ports.TextStream: each character is a token, once a space has come behind its word."""

    def __init__(self) -> None:
        self._held = ""
        self._offset_bytes = 0

    def push(self, text: str) -> list[tuple[int, int]]:
        settled, space, self._held = (self._held + text).rpartition(" ")
        return self._settle(settled + space)

    def flush(self) -> list[tuple[int, int]]:
        text, self._held = self._held, ""
        return self._settle(text)

    def restart(self, offset_bytes: int) -> None:
        self._held, self._offset_bytes = "", offset_bytes

    def _settle(self, text: str) -> list[tuple[int, int]]:
        tokens = []
        for character in text:
            self._offset_bytes += len(character.encode())
            tokens.append((FIRST_CHARACTER + ord(character), self._offset_bytes))
        return tokens


def opening(content: str = "hi", policy: Policy | None = None) -> OpenRequested:
    """A plain `open` with one user message."""
    return OpenRequested((Message(Role.USER, content),), policy or Policy("test", "for tests"))


def _characters(text: str) -> list[int]:
    return [FIRST_CHARACTER + ord(character) for character in text]


def _header(thinking: Thinking) -> tuple[int, ...]:
    return (IM_START,) if thinking is Thinking.ON else (IM_START, THINK, THINK_END)
