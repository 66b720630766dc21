"""Guesses the answer of the generative model, from its grammar and from the answers it has given.

A pass over a prompt with a guessed answer behind it tells for every guessed token whether the model would have chosen
it; so a right guess makes one pass of a dozen, and a wrong one costs next to nothing. What the model answers does not
depend on the guesses, only how many passes it takes.

Theory of operation. Answers are kept as a tree of tokens whose nodes count how many answers went through them. A guess
goes on from what is known by the child that was taken most often, to the end of an answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_NODES = 10_000
"""How far the tree grows beyond the grammar; a model that answers anything whatever must not fill the memory."""


@dataclass(slots=True)
class _Node:
    count: int = 0
    children: "dict[int, _Node]" = field(default_factory=dict)


class AnswerDrafts:
    """The tree of one kind of answers. Owner and thread: the generative engine, on the device thread."""

    def __init__(self, grammar: Iterable[Sequence[int]]) -> None:
        """Begins with the answers of the grammar, the likeliest first; each ends with its end token."""
        self._root = _Node()
        self._num_nodes = 1
        for answer in grammar:
            self._add(answer, 0)

    def count(self, answer: Sequence[int]) -> None:
        """Notes that an answer was given."""
        self._add(answer, 1)

    def _add(self, answer: Sequence[int], count: int) -> None:
        node = self._root
        for token_id in answer:
            if token_id not in node.children:
                if self._num_nodes >= MAX_NODES:
                    return
                self._num_nodes += 1
                node.children[token_id] = _Node()
            node = node.children[token_id]
            node.count += count

    def draft(self, begun: Sequence[int]) -> list[int]:
        """The likeliest rest of an answer that has begun with `begun`; empty where no answer was ever like that."""
        node = self._root
        for token_id in begun:
            if token_id not in node.children:
                return []
            node = node.children[token_id]
        rest = []
        while node.children:
            token_id, node = max(node.children.items(), key=lambda item: item[1].count)  # the first of equals
            rest.append(token_id)
        return rest
