"""Samples a user message together with an answer that was written for it."""

import random
from dataclasses import dataclass

from guardwire_server.demo.answers import Answer
from guardwire_server.demo.augmentation import polish_answer
from guardwire_server.demo.corpus import EXCHANGE_SEPARATOR, Corpus, Split
from guardwire_server.demo.labels import CATEGORY_FILES, CONTROVERSIAL, SAFE, SAFE_LABEL, UNSAFE, Label
from guardwire_server.demo.prompts import Prompt


@dataclass(frozen=True)
class _Kind:
    """What the exchanges of one section have in common.

    Attributes:
        weight: Share among all exchanges, in percent.
        prompt_risk: Risk of the user message, in the category of the file.
        answer_risk: Risk of the answer.
        refused: Whether the answer declines the request.
    """

    section: str
    weight: int
    prompt_risk: int
    answer_risk: int
    refused: bool = False


_KINDS = (
    _Kind("unsafe exchanges", 24, UNSAFE, UNSAFE),
    _Kind("refused exchanges", 15, UNSAFE, SAFE, refused=True),
    _Kind("warned exchanges", 6, UNSAFE, SAFE),
    _Kind("controversial exchanges", 17, CONTROVERSIAL, CONTROVERSIAL),
    _Kind("soft exchanges", 5, CONTROVERSIAL, SAFE),
    _Kind("safe exchanges", 33, SAFE, SAFE),
)


class ExchangeSampler:
    """Draws exchanges of one split; shares the caller's random state."""

    def __init__(self, corpus: Corpus, split: Split, rng: random.Random) -> None:
        self._corpus = corpus
        self._split: Split = split
        self._rng = rng
        self._stems = {
            kind.section: sorted(
                stem for (of, stem, section) in corpus.patterns if of == split and section == kind.section
            )
            for kind in _KINDS
        }

    def sample(self) -> tuple[Prompt, Answer] | None:
        """Draws a user message and the answer to it; None when the split has no exchange of the kind drawn."""
        kind = self._rng.choices(_KINDS, [kind.weight for kind in _KINDS])[0]
        if not self._stems[kind.section]:
            return None
        stem = self._stem(kind)
        pattern = self._rng.choice(self._corpus.section(self._split, stem, kind.section))
        halves = pattern.split(EXCHANGE_SEPARATOR)
        asked, answered = (self._corpus.expand(half, self._split, self._rng) for half in halves)
        category = CATEGORY_FILES.index(stem) if stem in CATEGORY_FILES else None
        prompt_label = SAFE_LABEL if kind.prompt_risk == SAFE else Label(kind.prompt_risk, category)
        answer_label = SAFE_LABEL if kind.answer_risk == SAFE else Label(kind.answer_risk, category)
        harm_start = None if kind.answer_risk == SAFE else 0
        answer = Answer(polish_answer(answered, self._rng), answer_label, harm_start, kind.refused)
        return Prompt(asked, prompt_label), answer

    def _stem(self, kind: _Kind) -> str:
        """Harmful ones come equally from every category; harmless ones in proportion to what there is."""
        stems = self._stems[kind.section]
        if kind.prompt_risk != SAFE:
            return self._rng.choice(stems)
        sizes = [len(self._corpus.section(self._split, stem, kind.section)) for stem in stems]
        return self._rng.choices(stems, sizes)[0]
