"""Where each sequence's keys and values live: an arena of token slots, handed out as contiguous extents.

Theory of operation: a buddy allocator. The arena is a row of roots of `root_tokens` slots each; an extent is a root
halved zero or more times, so its capacity is one of a few powers of two and its buddy's address follows from its own.
A freed extent merges with its buddy as soon as both are free, so the arena never silts up. A sequence that outgrows
its extent moves to one twice as large; a rollback is only a smaller length and touches nothing here.

Integers only: the tensors are the backend's.
"""

from dataclasses import dataclass

MIN_EXTENT_TOKENS = 64
"""The smallest extent: a short prompt with a short answer, and 64 slots of one head are whole cache lines."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`capacity` consecutive token slots from `start` on."""

    start: int
    capacity: int


class KvArena:
    """Hands out extents. Owner: the scheduler, on the device thread.

    Invariants: extents in use and free ones tile the arena without overlap; no two free buddies exist.
    """

    def __init__(self, num_roots: int, root_tokens: int) -> None:
        """An arena of `num_roots` x `root_tokens` slots.

        Args:
            num_roots: At least 1.
            root_tokens: The largest extent: MIN_EXTENT_TOKENS times a power of two.
        """
        if num_roots < 1 or root_tokens != extent_capacity(root_tokens):
            raise ValueError(f"{num_roots} roots of {root_tokens} tokens do not make an arena")
        self.root_tokens = root_tokens
        self.num_tokens = num_roots * root_tokens
        self.num_used = 0
        self._free: dict[int, set[int]] = {root_tokens: {root * root_tokens for root in range(num_roots)}}
        size = root_tokens
        while size > MIN_EXTENT_TOKENS:
            size //= 2
            self._free[size] = set()

    def allocate(self, num_tokens: int) -> Extent | None:
        """An extent of at least `num_tokens` slots, or None when the arena has none left.

        Raises:
            ValueError: If no extent could ever be so large.
        """
        capacity = extent_capacity(num_tokens)
        if capacity > self.root_tokens:
            raise ValueError(f"{num_tokens} tokens exceed the largest extent, {self.root_tokens}")
        size = capacity
        while not self._free[size]:
            size *= 2
            if size > self.root_tokens:
                return None
        start = min(self._free[size])  # lowest first: keeps the far end whole for large extents
        self._free[size].remove(start)
        while size > capacity:
            size //= 2
            self._free[size].add(start + size)
        self.num_used += capacity
        return Extent(start, capacity)

    def free(self, extent: Extent) -> None:
        """Takes an extent back."""
        start, size = extent.start, extent.capacity
        self.num_used -= size
        while size < self.root_tokens and (buddy := start ^ size) in self._free[size]:
            self._free[size].remove(buddy)
            start = min(start, buddy)
            size *= 2
        self._free[size].add(start)

    def has_room(self, num_tokens: int) -> bool:
        """Whether `allocate` would succeed."""
        capacity = extent_capacity(num_tokens)
        return any(starts for size, starts in self._free.items() if size >= capacity)


def extent_capacity(num_tokens: int) -> int:
    """The capacity of the extent that holds `num_tokens` tokens: the next size class."""
    return max(MIN_EXTENT_TOKENS, 1 << max(0, num_tokens - 1).bit_length())


def arena_shape(max_tokens: int, max_context_tokens: int) -> tuple[int, int]:
    """How to cut `max_tokens` slots into roots: (number of roots, tokens of each).

    A root holds the longest conversation; where the memory is too small even for one, it is the largest size class that
    fits, and conversations are limited by it.

    Raises:
        ValueError: If not even the smallest extent fits.
    """
    root_tokens = extent_capacity(max_context_tokens)
    while root_tokens > max_tokens:
        root_tokens //= 2
    if root_tokens < MIN_EXTENT_TOKENS:
        raise ValueError(f"{max_tokens} token slots are fewer than the smallest extent, {MIN_EXTENT_TOKENS}")
    return max_tokens // root_tokens, root_tokens
