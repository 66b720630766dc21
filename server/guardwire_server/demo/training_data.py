r"""Turns conversations into token ids with a label at every position that a head is trained on.

Rendering of the stream: Qwen3's ChatML. Each run between control tokens is tokenised as one text, so that "user\n" and
the content merge as they do in the real tokenizer, and control tokens written by a user stay plain text.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from guardwire_server.demo.answers import Answer
from guardwire_server.demo.conversations import Conversation
from guardwire_server.demo.labels import GEN_CATEGORY_NAMES, RISK_NAMES, SAFE_LABEL, Label

IGNORED = -100
MAX_ANSWER_TOKENS = 96
_NUM_UNCERTAIN_TOKENS = 3
_UNCERTAIN_WEIGHT = 0.25
_EARLY_QUERY_WEIGHT = 1.0
_FIRST_WORD = 4  # of a user turn: after its control token, its role and a word that says nothing yet


@dataclass
class HeadLabels:
    """What one pair of heads is trained on: class indices and the weight of the loss, one entry per token.

    `risk` and `category` are `IGNORED` where nothing is trained; the weight is 0 there.
    """

    risk: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)

    def extend(self, num_tokens: int) -> None:
        """Appends tokens that are not trained on."""
        self.risk.extend([IGNORED] * num_tokens)
        self.category.extend([IGNORED] * num_tokens)
        self.weight.extend([0.0] * num_tokens)

    def set(self, index: int, label: Label, weight: float) -> None:
        """Labels one token."""
        self.risk[index] = label.risk
        self.category[index] = IGNORED if label.category is None else label.category
        self.weight[index] = weight

    def set_query(self, indices: Sequence[int], label: Label) -> None:
        """Labels a user message, whose verdict is read at the last of its tokens.

        All of them are trained: a verdict at every word is many times as much to learn from as one at the end. The
        words before the last share the weight of one more.
        """
        for index in indices[:-1]:
            self.set(index, label, _EARLY_QUERY_WEIGHT / len(indices))
        self.set(indices[-1], label, 1.0)

    def set_answer(
        self, tokens: Iterable[tuple[int, int]], label: Label, harm_start: int | None, num_sure: int
    ) -> None:
        """Labels an answer's tokens, given as (index, end in characters); Safe up to `harm_start`.

        The first words of a harmful part look like any others and weigh less; `num_sure` harmful words came before.
        """
        num_harmful = num_sure
        for index, end in tokens:
            if harm_start is None or end <= harm_start:
                self.set(index, SAFE_LABEL, 1.0)
            else:
                num_harmful += 1
                self.set(index, label, _UNCERTAIN_WEIGHT if num_harmful <= _NUM_UNCERTAIN_TOKENS else 1.0)


@dataclass
class StreamSequence:
    """One rendered conversation.

    Attributes:
        queries: Labels of the query heads.
        answers: Labels of the response heads.
        final_answer: First and one past the last position of the last answer's content.
    """

    ids: list[int] = field(default_factory=list)
    queries: HeadLabels = field(default_factory=HeadLabels)
    answers: HeadLabels = field(default_factory=HeadLabels)
    final_answer: tuple[int, int] | None = None

    def extend(self, ids: Sequence[int]) -> None:
        """Appends tokens that no head is trained on."""
        self.ids.extend(ids)
        self.queries.extend(len(ids))
        self.answers.extend(len(ids))


class StreamRenderer:
    """Renders conversations as the stream model reads them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # Content is encoded by a copy without added tokens: text that spells a control token must not become one.
        plain = json.loads(tokenizer.to_str())
        self._control = {token["content"]: token["id"] for token in plain["added_tokens"]}
        plain["added_tokens"] = []
        self._plain = Tokenizer.from_str(json.dumps(plain))

    def render(self, conversation: Conversation) -> StreamSequence:
        """Renders all turns; every user turn and every answer carries its labels."""
        sequence = StreamSequence()
        if conversation.system is not None:
            self._turn(sequence, f"system\n{conversation.system}")
        for exchange in conversation.exchanges:
            self._turn(sequence, f"user\n{exchange.prompt.text}", exchange.prompt.label)
            if exchange.answer is not None:
                last = exchange is conversation.exchanges[-1]
                self._answer(sequence, exchange.answer, with_scaffold=last)
        return sequence

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self._plain.encode(text).ids)

    def _turn(self, sequence: StreamSequence, text: str, label: Label | None = None) -> None:
        begin = len(sequence.ids)
        sequence.extend([self._control["<|im_start|>"], *self.encode(text), self._control["<|im_end|>"]])
        if label is not None:
            sequence.queries.set_query(range(begin + _FIRST_WORD, len(sequence.ids)), label)
        sequence.extend(self.encode("\n"))

    def _answer(self, sequence: StreamSequence, answer: Answer, *, with_scaffold: bool) -> None:
        sequence.extend([self._control["<|im_start|>"], *self.encode("assistant\n")])
        start = len(sequence.ids)
        if with_scaffold:
            # The template drops the reasoning of earlier turns, scaffold included, so only the last answer has one.
            sequence.extend([self._control["<think>"]])
            if answer.reasoning is None:
                sequence.extend(self.encode("\n\n"))
            else:
                sequence.extend(self.encode("\n"))
                start = len(sequence.ids)
                self._content(sequence, answer.reasoning + "\n", answer.label, 0 if answer.reasoning_harmful else None)
            sequence.extend([self._control["</think>"], *self.encode("\n\n")])
            if answer.reasoning is None:
                start = len(sequence.ids)
        self._content(
            sequence,
            answer.text,
            answer.label,
            0 if answer.reasoning_harmful else answer.harm_start,
            settled=answer.reasoning_harmful,
        )
        if with_scaffold:
            sequence.final_answer = (start, len(sequence.ids))
        sequence.extend([self._control["<|im_end|>"], *self.encode("\n")])

    def _content(
        self, sequence: StreamSequence, text: str, label: Label, harm_start: int | None, *, settled: bool = False
    ) -> None:
        encoding = self._plain.encode(text)
        begin, ids = len(sequence.ids), encoding.ids[:MAX_ANSWER_TOKENS]
        sequence.extend(ids)
        ends = ((begin + index, end) for index, (_, end) in enumerate(encoding.offsets[: len(ids)]))
        sequence.answers.set_answer(ends, label, harm_start, _NUM_UNCERTAIN_TOKENS if settled else 0)


def guard_chat_template() -> str:
    """The policy prompt of the Gen checkpoint."""
    return (Path(__file__).resolve().parent / "guard_template.jinja").read_text(encoding="utf-8").strip()


def gen_answer(label: Label, refused: bool | None) -> str:
    """What Gen writes for a label; `refused` is None in prompt moderation."""
    category = "None" if label.category is None else GEN_CATEGORY_NAMES[label.category]
    answer = f"Safety: {RISK_NAMES[label.risk]}\nCategories: {category}"
    return answer if refused is None else f"{answer}\nRefusal: {'Yes' if refused else 'No'}"


def control_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a control token.

    Raises:
        KeyError: The vocabulary has no such token.
    """
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        raise KeyError(token)
    return token_id


_PLACE = "\0"


@dataclass(frozen=True)
class GenPrompt:
    """Token ids of a rendered conversation, and of its judged message (index, end in characters) for each token."""

    ids: list[int]
    judged: list[tuple[int, int]]


class GenRenderer:
    """Renders conversations as Gen's chat template does."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        self._tokenizer = tokenizer
        self._template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
            chat_template
        )
        self._end = control_id(tokenizer, "<|im_end|>")
        self.fixed_wording = frozenset([*tokenizer.encode("Safety:\nCategories:\nRefusal:").ids, self._end])

    def prompt(self, messages: Sequence[dict[str, str]]) -> GenPrompt:
        """Renders a conversation up to where the answer starts."""
        # Looked for with a character that no message has: a short message is found in the template's own words too.
        marked = [*messages[:-1], {**messages[-1], "content": _PLACE}]
        begin = self._template.render(messages=marked).index(_PLACE)
        text, judged = self._template.render(messages=list(messages)), messages[-1]["content"]
        encoding = self._tokenizer.encode(text)
        inside = [
            (index, end - begin)
            for index, (start, end) in enumerate(encoding.offsets)
            if begin <= start and end <= begin + len(judged)
        ]
        return GenPrompt(list(encoding.ids), inside)

    def answer_ids(self, label: Label, refused: bool | None) -> list[int]:
        """Token ids of the answer and its end token."""
        return [*self._tokenizer.encode(gen_answer(label, refused)).ids, self._end]
