"""Samples labelled conversations from the corpus.

A conversation is an optional system message, optional earlier turns, one user message and possibly an answer. Labels
follow `LABELS.md`. Everything here draws from one `random.Random`, so a seed fixes the whole stream of conversations.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from guardwire_server.demo.answers import Answer, AnswerSampler
from guardwire_server.demo.augmentation import polish_prompt, roughen_prompt
from guardwire_server.demo.corpus import Corpus, Split
from guardwire_server.demo.exchanges import ExchangeSampler
from guardwire_server.demo.prompts import Prompt, PromptSampler

_WRITTEN_SHARE = 0.5
"""Share of the answered messages that come with the answer written for them; the others draw both independently."""


@dataclass(frozen=True)
class Exchange:
    """One user message and, where it has one, the answer to it."""

    prompt: Prompt
    answer: Answer | None = None


@dataclass(frozen=True)
class Conversation:
    """What one training or evaluation item is made of."""

    exchanges: tuple[Exchange, ...]
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages; reasoning is left out, as the chat template does."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.prompt.text})
            if exchange.answer is not None:
                messages.append({"role": "assistant", "content": exchange.answer.text})
        return messages


class ConversationSampler:
    """An endless source of conversations of one split; owns its random state."""

    def __init__(self, corpus: Corpus, split: Split, seed: int, *, rough: bool = True, bare: float = 0.0) -> None:
        """Prepares the draws.

        Args:
            corpus: All patterns.
            split: The half to draw from.
            seed: Fixes the whole stream of conversations.
            rough: Whether prompts get typing errors and chat spellings, which is an aid to training.
            bare: Share of conversations that are one user message and nothing else. They are short, so that a
                training sees several times as many.
        """
        self._rng = random.Random(seed)
        self._corpus = corpus
        self._split: Split = split
        self._rough = rough
        self._bare = bare
        self._prompts = PromptSampler(corpus, split, self._rng)
        self._answers = AnswerSampler(corpus, split, self._rng)
        self._exchanges = ExchangeSampler(corpus, split, self._rng)

    def sample(self, *, answered: float = 0.6) -> Conversation:
        """Draws one conversation; `answered` is the share that ends with an answer."""
        rng = self._rng
        if rng.random() < self._bare:
            return Conversation((self._exchange(answered=False),))
        # Turns are independent of each other on purpose: a verdict is about the last message, whatever came before it.
        num_earlier = rng.choices((0, 1, 2), (80, 15, 5))[0]
        exchanges = [self._exchange(answered=True) for _ in range(num_earlier)]
        exchanges.append(self._exchange(answered=rng.random() < answered))
        system = None
        if rng.random() < 0.12:
            patterns = self._corpus.section(self._split, "systems", "systems")
            system = self._corpus.expand(rng.choice(patterns), self._split, rng) if patterns else None
        return Conversation(tuple(exchanges), system)

    def stream(self, count: int, *, answered: float = 0.6) -> Iterator[Conversation]:
        """Yields `count` conversations."""
        for _ in range(count):
            yield self.sample(answered=answered)

    def _exchange(self, *, answered: bool) -> Exchange:
        prompt, answer = self._prompts.sample(), None
        if answered:
            written = self._exchanges.sample() if self._rng.random() < _WRITTEN_SHARE else None
            prompt, answer = written or (prompt, self._answers.sample(prompt))
        write = roughen_prompt if self._rough else polish_prompt
        return Exchange(replace(prompt, text=write(prompt.text, self._rng)), answer)
