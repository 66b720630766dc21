from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from guardwire_server.core.kv_arena import MIN_EXTENT_TOKENS, Extent, KvArena, extent_capacity
from tests.core.strategies import BOUNDED, STATEFUL

ROOT = 4 * MIN_EXTENT_TOKENS


@pytest.mark.parametrize(
    ("num_tokens", "capacity"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (8192, 8192)]
)
def test_size_classes(num_tokens: int, capacity: int) -> None:
    assert extent_capacity(num_tokens) == capacity


@pytest.mark.parametrize(("num_roots", "root_tokens"), [(0, 64), (-1, 64), (1, 63), (1, 0), (1, 96), (2, 1000)])
def test_sizes_that_make_no_arena(num_roots: int, root_tokens: int) -> None:
    with pytest.raises(ValueError, match="do not make an arena"):
        KvArena(num_roots, root_tokens)


def test_an_extent_that_could_never_be() -> None:
    arena = KvArena(2, ROOT)
    with pytest.raises(ValueError, match="exceed the largest extent"):
        arena.allocate(ROOT + 1)
    assert arena.num_used == 0


def test_a_full_arena_has_no_room() -> None:
    arena = KvArena(1, 2 * MIN_EXTENT_TOKENS)
    first, second = arena.allocate(1), arena.allocate(64)
    assert (first, second) == (Extent(0, 64), Extent(64, 64))
    assert arena.allocate(1) is None
    assert not arena.has_room(1)


def test_the_far_end_stays_whole() -> None:
    arena = KvArena(4, ROOT)
    small = [arena.allocate(1) for _ in range(ROOT // MIN_EXTENT_TOKENS)]
    assert all(extent and extent.start < ROOT for extent in small)
    assert [arena.allocate(ROOT) for _ in range(3)] == [Extent(root * ROOT, ROOT) for root in (1, 2, 3)]


@BOUNDED
@given(st.lists(st.integers(0, ROOT), max_size=20), st.randoms(use_true_random=False))
def test_freed_in_any_order_it_is_whole_again(sizes: list[int], random: Random) -> None:
    arena = KvArena(2, ROOT)
    extents = [extent for size in sizes if (extent := arena.allocate(size))]
    random.shuffle(extents)
    for extent in extents:
        arena.free(extent)
    assert arena.num_used == 0
    assert [arena.allocate(ROOT) for _ in range(3)] == [Extent(0, ROOT), Extent(ROOT, ROOT), None]


class ArenaMachine(RuleBasedStateMachine):
    """The arena against a map of slots."""

    extents: Bundle[Extent] = Bundle("extents")

    def __init__(self) -> None:
        super().__init__()
        self.arena = KvArena(3, ROOT)
        self.used: set[int] = set()

    @rule(target=extents, num_tokens=st.integers(0, ROOT))
    def allocate(self, num_tokens: int) -> Extent:
        has_room = self.arena.has_room(num_tokens)
        extent = self.arena.allocate(num_tokens)
        assert (extent is not None) == has_room
        if extent is None:
            assert not self.free_blocks(extent_capacity(num_tokens))
            return Extent(0, 0)
        slots = set(range(extent.start, extent.start + extent.capacity))
        assert num_tokens <= extent.capacity == extent_capacity(num_tokens)
        assert extent.start % extent.capacity == 0
        assert extent.start + extent.capacity <= self.arena.num_tokens
        assert not slots & self.used
        self.used |= slots
        return extent

    @rule(extent=consumes(extents))
    def free(self, extent: Extent) -> None:
        if extent.capacity:
            self.arena.free(extent)
            self.used -= set(range(extent.start, extent.start + extent.capacity))

    @invariant()
    def counts_what_is_used(self) -> None:
        assert self.arena.num_used == len(self.used)

    @invariant()
    def free_extents_tile_the_rest(self) -> None:
        free = [(start, size) for size, starts in self.arena._free.items() for start in starts]
        slots = [slot for start, size in free for slot in range(start, start + size)]
        assert len(slots) == len(set(slots))
        assert set(slots) == set(range(self.arena.num_tokens)) - self.used
        assert not any((start ^ size, size) in free for start, size in free if size < ROOT), "free buddies not merged"

    @precondition(lambda self: not self.used)
    @invariant()
    def merges_when_all_is_freed(self) -> None:
        assert self.arena._free[ROOT] == {0, ROOT, 2 * ROOT}

    def free_blocks(self, capacity: int) -> list[int]:
        """Where an aligned extent of that capacity would be wholly free."""
        starts = range(0, self.arena.num_tokens, capacity)
        return [start for start in starts if not self.used & set(range(start, start + capacity))]


ArenaMachine.TestCase.settings = STATEFUL
TestArena = ArenaMachine.TestCase
