"""When the conversations of a load arrive and their tokens are due: decided beforehand, whatever the server does."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Push:
    """Consecutive tokens of a conversation that are due together."""

    first_token: int
    num_tokens: int
    due_s: float
    """After the conversation's arrival."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a conversation's tokens come, as a language model would write them: the first one after its own time."""

    num_tokens: int
    tokens_per_s: float
    chunk_tokens: int
    """Tokens in a push; they are due when the last of them is written."""

    @property
    def length_s(self) -> float:
        """From a conversation's arrival until its last token is due."""
        return self.num_tokens / self.tokens_per_s

    def pushes(self) -> Iterator[Push]:
        """All pushes of a conversation, in order; the last one may be smaller."""
        for first_token in range(0, self.num_tokens, self.chunk_tokens):
            end = min(first_token + self.chunk_tokens, self.num_tokens)
            yield Push(first_token, end - first_token, end / self.tokens_per_s)

    def due_s(self, token: int) -> float:
        """When a token is due, after the conversation's arrival."""
        chunk_end = (token // self.chunk_tokens + 1) * self.chunk_tokens
        return min(chunk_end, self.num_tokens) / self.tokens_per_s

    def num_due(self, age_s: float) -> int:
        """How many tokens are due so long after the conversation's arrival."""
        if age_s >= self.length_s:
            return self.num_tokens
        return max(0, int(age_s * self.tokens_per_s) // self.chunk_tokens * self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A whole load. Times are seconds after its beginning."""

    arrivals_s: Sequence[float]
    """When each conversation arrives, in order."""
    pace: Pace

    def num_arrived(self, until_s: float) -> int:
        """How many conversations have arrived by then."""
        return sum(arrival_s <= until_s for arrival_s in self.arrivals_s)

    def num_tokens_due(self, until_s: float) -> int:
        """How many tokens were due by then, whether or not they could be pushed."""
        return sum(self.pace.num_due(until_s - arrival_s) for arrival_s in self.arrivals_s)

    @property
    def end_s(self) -> float:
        """When the last token is due."""
        return self.arrivals_s[-1] + self.pace.length_s if self.arrivals_s else 0.0


def poisson_arrivals(rate: float, duration_s: float, seed: int) -> Sequence[float]:
    """Arrivals that know nothing of each other: the gaps between them are exponential.

    Args:
        rate: How many come in a second, on average.
        duration_s: How long they come.
        seed: The same seed gives the same arrivals.
    """
    rng = random.Random(f"arrivals {seed}")
    arrivals_s = array("d")
    arrival_s = rng.expovariate(rate)
    while arrival_s < duration_s:
        arrivals_s.append(arrival_s)
        arrival_s += rng.expovariate(rate)
    return arrivals_s


def token_ids(vocabulary_size: int, seed: int, conversation: int) -> Iterator[int]:
    """A conversation's tokens, without end: random ones, which take a model as long as any others.

    They come from the lower half of the vocabulary. Byte-level vocabularies such as Qwen's begin with the pieces of
    text and end with the control tokens, so no tokenizer is needed to know that none of those is among them.
    """
    rng = random.Random(f"tokens {seed} {conversation}")
    while True:
        yield rng.randrange(max(1, vocabulary_size // 2))
