"""What one step of an engine does: which tokens of which sequences, where their keys and values lie, what is read."""

from array import array
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from guardwire_server.core.kv_arena import Extent


class Read(IntEnum):
    """What is read at a token's position once the model has seen it."""

    NOTHING = 0
    RESPONSE = 1
    QUERY = 2
    LOGITS = 3


ONE_RESPONSE = bytes((Read.RESPONSE,))
"""The reads of one token of an answer: by far the most frequent."""

new_tuple = tuple.__new__
"""What the constructor of a NamedTuple comes down to; itself it takes twice as long, which every token would pay."""


class Chunk(NamedTuple):
    """One sequence's part of a step: `ids` are its tokens `start` to `start + len(ids) - 1`.

    `reads` holds one Read code a token. The keys and values of token i belong at slot `extent.start + i`; those of the
    tokens before `start` are there already. `epoch` is the sequence's at the time of planning.
    """

    seq_id: int
    epoch: int
    start: int
    ids: "array[int]"
    reads: bytes
    extent: Extent


@dataclass(frozen=True, slots=True)
class Copy:
    """Moves the first `num_tokens` slots of `source` to `target`."""

    source: Extent
    target: Extent
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does: the copies in their order, then the chunks."""

    copies: tuple[Copy, ...]
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step takes."""
        return sum([len(chunk.ids) for chunk in self.chunks])
