"""Decisions read from bytes, so that hypothesis draws once for a whole sequence of messages.

Drawn one by one, the decisions behind one sequence take hypothesis longer than the server takes to answer it. Its
shrinker sets bytes to 0: so 0 chooses what is simplest, and so does everything beyond the end.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SELDOM, RARELY = 12, 128
"""One in so many."""


class Choices:
    """Owner of the place in the bytes, for one sequence."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, num_bytes: int) -> bytes:
        """The next bytes; zeros beyond the end."""
        taken = self._data[self._at : self._at + num_bytes]
        self._at += num_bytes
        return taken.ljust(num_bytes, b"\x00")

    def below(self, stop: int) -> int:
        """An integer from 0 to `stop` - 1."""
        return int.from_bytes(self.take(((stop - 1).bit_length() + 7) // 8), "little") % stop

    def between(self, lowest: int, highest: int) -> int:
        """An integer, both ends included."""
        return lowest + self.below(highest - lowest + 1)

    def pick(self, values: Sequence[T]) -> T:
        """One of them; the first is the simplest."""
        return values[self.below(len(values))]

    def flip(self) -> bool:
        """True or False."""
        return self.below(2) == 1

    def seldom(self) -> bool:
        """False, mostly."""
        return self.below(SELDOM) == SELDOM - 1

    def rarely(self) -> bool:
        """False, nearly always: of all the choices of a message one at most is like that."""
        return self.below(RARELY) == RARELY - 1
