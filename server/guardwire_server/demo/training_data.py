r"""Turns conversations into token ids with a label at every position that a head is trained on.

Rendering of the stream: Qwen3's ChatML. Each run between control tokens is tokenised as one text, so that "user\n" and
the content merge as they do in the real tokenizer, and control tokens written by a user stay plain text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

from guardwire_server.demo.answers import Answer
from guardwire_server.demo.conversations import Conversation
from guardwire_server.demo.labels import GEN_CATEGORY_NAMES, RISK_NAMES, SAFE, Label

IGNORED = -100
MAX_ANSWER_TOKENS = 96
_NUM_UNCERTAIN_TOKENS = 3
_UNCERTAIN_WEIGHT = 0.25


@dataclass
class StreamSequence:
    """One rendered conversation; all lists have one entry per token, `IGNORED` where nothing is trained.

    Attributes:
        answer_weight: Weight of the response loss; the first words of a harmful part look like any other words.
        final_answer: First and one past the last position of the last answer's content.
    """

    ids: list[int] = field(default_factory=list)
    query_risk: list[int] = field(default_factory=list)
    query_category: list[int] = field(default_factory=list)
    answer_risk: list[int] = field(default_factory=list)
    answer_category: list[int] = field(default_factory=list)
    answer_weight: list[float] = field(default_factory=list)
    final_answer: tuple[int, int] | None = None

    def extend(self, ids: Sequence[int]) -> None:
        """Appends tokens that no head is trained on."""
        self.ids.extend(ids)
        for labels in (self.query_risk, self.query_category, self.answer_risk, self.answer_category):
            labels.extend([IGNORED] * len(ids))
        self.answer_weight.extend([1.0] * len(ids))


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
        sequence.extend([self._control["<|im_start|>"], *self.encode(text)])
        sequence.extend([self._control["<|im_end|>"]])
        if label is not None:
            sequence.query_risk[-1] = label.risk
            sequence.query_category[-1] = IGNORED if label.category is None else label.category
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
        num_harmful = 0
        for token_id, (_, end) in zip(encoding.ids[:MAX_ANSWER_TOKENS], encoding.offsets, strict=False):
            sequence.extend([token_id])
            harmful = harm_start is not None and end > harm_start
            sequence.answer_risk[-1] = label.risk if harmful else SAFE
            if harmful:
                num_harmful += 1
                sequence.answer_category[-1] = IGNORED if label.category is None else label.category
                if num_harmful <= _NUM_UNCERTAIN_TOKENS and not settled:
                    sequence.answer_weight[-1] = _UNCERTAIN_WEIGHT


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


class GenRenderer:
    """Renders conversations as Gen's chat template does."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        self._tokenizer = tokenizer
        self._template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
            chat_template
        )
        self._end = control_id(tokenizer, "<|im_end|>")
        self.fixed_wording = frozenset([*tokenizer.encode("Safety:\nCategories:\nRefusal:").ids, self._end])

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids up to where the answer starts."""
        return list(self._tokenizer.encode(self._template.render(messages=list(messages))).ids)

    def answer_ids(self, label: Label, refused: bool | None) -> list[int]:
        """Token ids of the answer and its end token."""
        return [*self._tokenizer.encode(gen_answer(label, refused)).ids, self._end]
