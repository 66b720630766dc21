"""Samples assistant answers: helpful, refusing, warning, harmful, and good at first but harmful from some word on."""

import random
import re
from dataclasses import dataclass

from guardwire_server.demo.augmentation import polish_answer
from guardwire_server.demo.corpus import Corpus, Split, insert_goal
from guardwire_server.demo.labels import (
    CATEGORY_FILES,
    CONTROVERSIAL,
    JAILBREAK,
    NUM_RESPONSE_CATEGORIES,
    SAFE,
    SAFE_LABEL,
    UNSAFE,
    Label,
)
from guardwire_server.demo.prompts import Prompt, PromptSampler

_RISK_SECTION = {UNSAFE: "unsafe", CONTROVERSIAL: "controversial"}

_SHARES = {
    SAFE: (("helpful", 70), ("harmless_refusal", 6), ("unsafe", 10), ("controversial", 6), ("mixed", 8)),
    UNSAFE: (("refusal", 33), ("warning", 13), ("unsafe", 36), ("controversial", 5), ("mixed", 8), ("helpful", 5)),
    CONTROVERSIAL: (
        ("refusal", 16),
        ("warning", 12),
        ("helpful", 12),
        ("controversial", 40),
        ("unsafe", 12),
        ("mixed", 8),
    ),
}
"""Share of each kind of answer by the risk of the prompt, in percent."""


@dataclass(frozen=True)
class Answer:
    """An assistant message with its label.

    Attributes:
        text: The answer without its reasoning.
        label: What the whole answer amounts to.
        harm_start: Index of the character from which on the label holds, what comes before is Safe; None when all is.
        refused: Whether the answer declines the request.
        reasoning: What stands between `<think>` and `</think>`; None when thinking is off. Harmful answers that hold
            reasoning are harmful from the reasoning on only when `reasoning_harmful` is set.
    """

    text: str
    label: Label
    harm_start: int | None = None
    refused: bool = False
    reasoning: str | None = None
    reasoning_harmful: bool = False


_SECOND_PERSON = {
    "my": "your",
    "myself": "yourself",
    "me": "you",
    "mine": "yours",
    "our": "your",
    "us": "you",
    "i": "you",
    "i'm": "you're",
    "am": "are",
}


def _address_the_user(goal: str) -> str:
    """Turns the user's "my" into the assistant's "your"."""
    return re.sub(r"[\w']+", lambda match: _SECOND_PERSON.get(match.group().lower(), match.group()), goal)


class AnswerSampler:
    """Draws answers of one split; shares the caller's random state."""

    def __init__(self, corpus: Corpus, split: Split, rng: random.Random) -> None:
        self._corpus = corpus
        self._split: Split = split
        self._rng = rng
        self._prompts = PromptSampler(corpus, split, rng)
        self._safe_stems = sorted(
            {stem for (_, stem, section) in corpus.patterns if section == "safe answers"} - set(CATEGORY_FILES)
        )

    def sample(self, prompt: Prompt) -> Answer:
        """Draws an answer that fits the prompt's topic."""
        kinds, weights = zip(*_SHARES[prompt.label.risk], strict=True)
        while True:
            kind = self._rng.choices(kinds, weights)[0]
            answer = self._build(kind, prompt)
            if answer is not None and answer.text:
                return self._with_reasoning(answer, prompt) if self._rng.random() < 0.06 else answer

    def _build(self, kind: str, prompt: Prompt) -> Answer | None:
        if kind in ("helpful", "warning", "refusal", "harmless_refusal"):
            text = {
                "helpful": self._helpful,
                "warning": self._warning,
                "refusal": self._refusal,
                "harmless_refusal": self._harmless_refusal,
            }[kind](prompt)
            return (
                None if text is None else Answer(polish_answer(text, self._rng), SAFE_LABEL, refused="refusal" in kind)
            )
        risk = CONTROVERSIAL if kind == "controversial" else UNSAFE
        if kind == "mixed" and self._rng.random() < 0.3:
            risk = CONTROVERSIAL
        return self._harmful(risk, prompt, preamble=self._preamble(prompt) if kind == "mixed" else self._opening(0.3))

    def _draw(self, stem: str, section: str) -> str | None:
        patterns = self._corpus.section(self._split, stem, section)
        return self._corpus.expand(self._rng.choice(patterns), self._split, self._rng) if patterns else None

    def _framed(self, section: str, goal: str | None) -> str | None:
        frame = self._draw("answers", section)
        if frame is None or "{goal" not in frame:
            return frame
        return None if goal is None else insert_goal(frame, _address_the_user(goal))

    def _opening(self, share: float) -> str:
        return (self._draw("answers", "openings") or "") if self._rng.random() < share else ""

    def _join(self, *parts: str | None) -> str:
        return " ".join(part for part in parts if part)

    def _safe_lines(self, prompt: Prompt) -> str | None:
        look_alike = prompt.label.category
        if look_alike is None or self._rng.random() < 0.3:
            look_alike = self._rng.randrange(NUM_RESPONSE_CATEGORIES)
        if self._rng.random() < 0.4:
            return self._draw(CATEGORY_FILES[look_alike], "safe answers")
        sizes = [len(self._corpus.section(self._split, stem, "safe answers")) for stem in self._safe_stems]
        return self._draw(self._rng.choices(self._safe_stems, sizes)[0], "safe answers") if any(sizes) else None

    def _helpful(self, prompt: Prompt) -> str | None:
        own_goal = prompt.goal if prompt.goal_label == SAFE_LABEL and self._rng.random() < 0.8 else None
        goal = own_goal or self._prompts.safe_goal()
        comply = self._framed("comply", goal) if goal is not None and self._rng.random() < 0.45 else None
        body = self._safe_lines(prompt) if comply is None or self._rng.random() < 0.7 else None
        tail = self._draw("answers", "tips") if self._rng.random() < 0.3 else None
        closing = self._draw("answers", "closings") if self._rng.random() < 0.15 else None
        return self._join(self._opening(0.25), comply, body, tail, closing)

    def _warning(self, prompt: Prompt) -> str | None:
        warning = self._framed("warnings", prompt.goal)
        category = prompt.label.category
        lines = (
            self._draw(CATEGORY_FILES[category], "safe answers")
            if category is not None and self._rng.random() < 0.6
            else None
        )
        if self._rng.random() < 0.4 and lines is not None:
            return self._join(lines, self._draw("answers", "redirects") if self._rng.random() < 0.4 else None)
        return self._join(warning, lines) if warning else None

    def _refusal(self, prompt: Prompt) -> str | None:
        refusal = self._framed("refusals", prompt.goal)
        if refusal is None:
            return None
        reason = self._framed("warnings", prompt.goal) if self._rng.random() < 0.2 else None
        redirect = self._draw("answers", "redirects") if self._rng.random() < 0.45 else None
        return self._join(refusal, reason, redirect)

    def _harmless_refusal(self, prompt: Prompt) -> str | None:
        del prompt
        return self._join(
            self._draw("answers", "harmless refusals"),
            self._draw("answers", "tips") if self._rng.random() < 0.3 else None,
        )

    def _preamble(self, prompt: Prompt) -> str:
        if self._rng.random() < 0.5:
            return self._draw("answers", "turning points") or ""
        return self._join(
            self._safe_lines(prompt), self._draw("answers", "turns") if self._rng.random() < 0.5 else None
        )

    def _harmful(self, risk: int, prompt: Prompt, preamble: str) -> Answer | None:
        category = prompt.goal_label.category if prompt.goal is not None else prompt.label.category
        if category is None or category == JAILBREAK:
            category = self._rng.randrange(NUM_RESPONSE_CATEGORIES)
        label = Label(risk, category)
        goal = prompt.goal if prompt.goal_label == label else self._prompts.risky_goal(label)
        comply = self._framed("comply", goal) if self._rng.random() < 0.4 else None
        body = (
            self._draw(CATEGORY_FILES[category], f"{_RISK_SECTION[risk]} answers")
            if comply is None or self._rng.random() < 0.75
            else None
        )
        if comply is None and body is None:
            return None
        second = (
            self._draw(CATEGORY_FILES[category], f"{_RISK_SECTION[risk]} answers")
            if body and self._rng.random() < 0.25
            else None
        )
        harm = self._join(
            comply, body, second, self._draw("answers", "closings") if self._rng.random() < 0.12 else None
        )
        preamble = polish_answer(preamble, self._rng) if preamble else ""
        harm = harm if preamble.endswith((",", ":")) else polish_answer(harm, self._rng)
        return Answer(self._join(preamble, harm), label, harm_start=len(preamble))

    def _with_reasoning(self, answer: Answer, prompt: Prompt) -> Answer:
        harmful = answer.label.risk != SAFE and answer.harm_start == 0
        section = "harmful reasoning" if harmful else "refusing reasoning" if answer.refused else "safe reasoning"
        reasoning = self._framed(section, prompt.goal)
        if reasoning is None:
            return answer
        return Answer(
            answer.text, answer.label, answer.harm_start, answer.refused, polish_answer(reasoning, self._rng), harmful
        )
