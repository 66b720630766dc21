"""Finds, among sequences whose keys and values are still there, the one that begins most like a new one.

Theory of operation. Ids are taken in blocks; a block's key is a hash of the block and the key before it, so equal keys
mean (but for collisions) equal beginnings. A lookup walks the blocks of the new sequence until no sequence has the key,
and then compares the ids themselves: that finds the exact length and makes collisions harmless.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable

BLOCK_TOKENS = 16
"""Shorter common beginnings are not found; copying them would hardly be faster than computing them."""


class PrefixIndex:
    """Ids by their beginnings, the least recently used first to go. Owner: the scheduler, on the device thread.

    Invariant: `_by_key` holds exactly the keys of the sequences in `_ids`.
    """

    def __init__(self, max_sequences: int) -> None:
        self._max_sequences = max_sequences
        self._ids: OrderedDict[int, array[int]] = OrderedDict()
        self._by_key: dict[int, dict[int, None]] = {}

    def __len__(self) -> int:
        """Sequences in the index."""
        return len(self._ids)

    def __contains__(self, seq_id: int) -> bool:
        """Whether a sequence is in the index."""
        return seq_id in self._ids

    def add(self, seq_id: int, ids: "array[int]") -> list[int]:
        """Takes a sequence in; returns those that are not worth their room any more, which may be itself."""
        similar, length = self.longest(ids)
        if len(ids) < BLOCK_TOKENS or length == len(ids):
            return [seq_id]
        dropped = []
        if similar is not None and length == len(self._ids[similar]):
            dropped.append(similar)  # the new one begins with all of it
        elif len(self._ids) >= self._max_sequences:
            dropped.append(next(iter(self._ids)))
        for other in dropped:
            self.remove(other)
        self._ids[seq_id] = ids
        for key in _keys(ids):
            self._by_key.setdefault(key, {})[seq_id] = None
        return dropped

    def remove(self, seq_id: int) -> None:
        """Forgets a sequence; an unknown one is passed over."""
        ids = self._ids.pop(seq_id, None)
        if ids is None:
            return
        for key in _keys(ids):
            del self._by_key[key][seq_id]
            if not self._by_key[key]:
                del self._by_key[key]

    def longest(self, ids: "array[int]") -> tuple[int | None, int]:
        """The sequence with the longest beginning in common with `ids`, and its length; None and 0 if there is none."""
        candidates: Iterable[int] = ()
        num_blocks = 0
        for key in _keys(ids):
            if key not in self._by_key:
                break
            candidates = self._by_key[key]
            num_blocks += 1
        best, longest = None, 0
        for seq_id in candidates:
            length = _common_length(ids, self._ids[seq_id], num_blocks * BLOCK_TOKENS)
            if length > longest:
                best, longest = seq_id, length
        return best, longest

    def touch(self, seq_id: int) -> None:
        """Notes that a sequence was of use."""
        self._ids.move_to_end(seq_id)


def _keys(ids: "array[int]") -> list[int]:
    """One key for every whole block."""
    keys, key = [], 0
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, ids[start : start + BLOCK_TOKENS].tobytes()))
        keys.append(key)
    return keys


def _common_length(left: "array[int]", right: "array[int]", expected: int) -> int:
    """How far two arrays are equal; 0 where they are not over the `expected` tokens that their keys promise."""
    if left[:expected] != right[:expected]:
        return 0
    length, shorter = expected, min(len(left), len(right))
    while length < shorter and left[length] == right[length]:
        length += 1
    return length
