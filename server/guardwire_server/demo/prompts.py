"""Samples user messages with their label."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from guardwire_server.demo.corpus import Corpus, Split, insert_goal
from guardwire_server.demo.labels import CATEGORY_FILES, CONTROVERSIAL, JAILBREAK, SAFE_LABEL, UNSAFE, Label

_RISK_SECTION = {UNSAFE: "unsafe", CONTROVERSIAL: "controversial"}


@dataclass(frozen=True)
class Prompt:
    """A user message and its label.

    Attributes:
        goal: The verb phrase at its heart, where it was built around one.
        goal_label: What doing the goal amounts to; a Safe question may be about a harmful goal.
    """

    text: str
    label: Label
    goal: str | None = None
    goal_label: Label = SAFE_LABEL


class PromptSampler:
    """Draws prompts of one split; shares the caller's random state."""

    def __init__(self, corpus: Corpus, split: Split, rng: random.Random) -> None:
        self._corpus = corpus
        self._split: Split = split
        self._rng = rng
        self._everyday = sorted(
            {stem for (_, stem, section) in corpus.patterns if section == "safe goals" or section == "safe sentences"}
            - set(CATEGORY_FILES)
        )

    def sample(self) -> Prompt:
        """Draws one prompt: about half Safe, a third Unsafe, the rest Controversial."""
        while True:
            draw = self._rng.random()
            prompt = self._safe() if draw < 0.48 else self._risky(UNSAFE) if draw < 0.8 else self._risky(CONTROVERSIAL)
            if prompt is not None:
                return prompt

    def risky_goal(self, label: Label) -> str | None:
        """A verb phrase with this label, or None when the split has none."""
        stem = CATEGORY_FILES[label.category or 0]
        return self._draw(stem, f"{_RISK_SECTION[label.risk]} goals")

    def safe_goal(self) -> str | None:
        """A harmless verb phrase, everyday or look-alike."""
        stems = self._everyday if self._rng.random() < 0.6 else CATEGORY_FILES
        return self._draw_from(stems, "safe goals")

    def _draw(self, stem: str, section: str) -> str | None:
        patterns = self._corpus.section(self._split, stem, section)
        return self._corpus.expand(self._rng.choice(patterns), self._split, self._rng) if patterns else None

    def _draw_from(self, stems: Sequence[str], section: str) -> str | None:
        """Draws from several files as if they were one: each in proportion to its patterns."""
        sizes = [len(self._corpus.section(self._split, stem, section)) for stem in stems]
        return self._draw(self._rng.choices(stems, sizes)[0], section) if any(sizes) else None

    def _framed(self, goal: str | None, label: Label, goal_label: Label) -> Prompt | None:
        frame = self._draw("frames", "any" if label == goal_label else "safe")
        if goal is None or frame is None:
            return None
        return self._decorated(Prompt(insert_goal(frame, goal), label, goal, goal_label))

    def _decorated(self, prompt: Prompt) -> Prompt:
        text = prompt.text
        if self._rng.random() < 0.12 and (prefix := self._draw("frames", "prefixes")):
            text = f"{prefix} {text}"
        if self._rng.random() < 0.12 and (suffix := self._draw("frames", "suffixes")):
            text = f"{text.rstrip('.?!')}{suffix if suffix.startswith((',', '.', '?', '!')) else ' ' + suffix}"
        return replace(prompt, text=text)

    def _sentence(self, stems: Sequence[str], section: str, label: Label) -> Prompt | None:
        text = self._draw_from(stems, section)
        return None if text is None else self._decorated(Prompt(text, label))

    def _safe(self) -> Prompt | None:
        rng = self._rng
        kinds: list[Callable[[], Prompt | None]] = [
            lambda: self._framed(self.safe_goal(), SAFE_LABEL, SAFE_LABEL),
            lambda: self._sentence(self._everyday, "safe sentences", SAFE_LABEL),
            lambda: self._sentence(CATEGORY_FILES, "safe sentences", SAFE_LABEL),
            self._question_about_harm,
        ]
        return rng.choices(kinds, (46, 15, 26, 13))[0]()

    def _question_about_harm(self) -> Prompt | None:
        label = self._risky_label(self._rng.choice((UNSAFE, CONTROVERSIAL)))
        return self._framed(self.risky_goal(label), SAFE_LABEL, label)

    def _risky_label(self, risk: int) -> Label:
        return Label(risk, self._rng.randrange(JAILBREAK))

    def _risky(self, risk: int) -> Prompt | None:
        if self._rng.random() < 0.125:
            return self._jailbreak(risk)
        label = self._risky_label(risk)
        if self._rng.random() < 0.65:
            return self._framed(self.risky_goal(label), label, label)
        return self._sentence((CATEGORY_FILES[label.category or 0],), f"{_RISK_SECTION[risk]} sentences", label)

    def _jailbreak(self, risk: int) -> Prompt | None:
        label = Label(risk, JAILBREAK)
        if risk == CONTROVERSIAL or self._rng.random() < 0.6:
            return self._sentence(("jailbreak",), f"{_RISK_SECTION[risk]} sentences", label)
        frame = self._draw("jailbreak", "unsafe frames")
        goal_label = SAFE_LABEL if self._rng.random() < 0.2 else self._risky_label(UNSAFE)
        goal = self.safe_goal() if goal_label == SAFE_LABEL else self.risky_goal(goal_label)
        return None if frame is None or goal is None else Prompt(insert_goal(frame, goal), label, goal, goal_label)
