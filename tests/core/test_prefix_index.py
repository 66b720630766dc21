import random
from array import array

import pytest

from guardwire_server.core.prefix_index import BLOCK_TOKENS, PrefixIndex


def ids(*parts: tuple[int, int]) -> "array[int]":
    """Runs of (token, length)."""
    return array("i", (token for token, length in parts for _ in range(length)))


def test_the_longest_common_beginning_to_the_token() -> None:
    index = PrefixIndex(8)
    assert index.add(1, ids((7, 20), (8, 30))) == []
    assert index.add(2, ids((7, 40))) == []
    assert index.longest(ids((7, 20), (8, 5), (9, 100))) == (1, 25)
    assert index.longest(ids((7, 33), (9, 1))) == (2, 33)
    assert index.longest(ids((7, 100))) == (2, 40)


@pytest.mark.parametrize("length", [0, 1, BLOCK_TOKENS - 1])
def test_less_than_a_block_is_nothing(length: int) -> None:
    index = PrefixIndex(8)
    index.add(1, ids((7, 50)))
    assert index.longest(ids((7, length), (8, 50))) == (None, 0)
    assert index.add(2, ids((7, length))) == [2]
    assert len(index) == 1


def test_what_is_the_beginning_of_another_is_dropped() -> None:
    index = PrefixIndex(8)
    index.add(1, ids((7, 50)))
    assert index.add(2, ids((7, 50))) == [2], "it is there already"
    assert index.add(3, ids((7, 40))) == [3], "a longer one is there already"
    assert index.add(4, ids((7, 60))) == [1], "the new one is the longer one"
    assert index.longest(ids((7, 55))) == (4, 55)


def test_the_least_recently_used_goes_first() -> None:
    index = PrefixIndex(2)
    index.add(1, ids((1, 20)))
    index.add(2, ids((2, 20)))
    index.touch(1)
    assert index.add(3, ids((3, 20))) == [2]
    assert index.longest(ids((2, 20))) == (None, 0)
    assert index.longest(ids((1, 20))) == (1, 20)
    assert [seq_id in index for seq_id in (1, 2, 3)] == [True, False, True]


def test_an_unknown_sequence_is_passed_over() -> None:
    PrefixIndex(2).remove(5)


def test_no_sequence_leaves_a_trace() -> None:
    """Random texts over two tokens, so that beginnings are often shared, against a plain search."""
    rng, index = random.Random(1), PrefixIndex(6)
    kept: dict[int, array[int]] = {}
    for seq_id in range(400):
        new = array("i", (token for _ in range(rng.randrange(6)) for token in rng.choices((0, 1), (9, 1)) * 8))
        expected = max((common(new, other) for other in kept.values()), default=0)
        found, length = index.longest(new)
        if length:
            assert found is not None
            assert length == common(new, kept[found]) == expected
        else:
            assert expected < BLOCK_TOKENS
        kept[seq_id] = new
        for dropped in index.add(seq_id, new):
            del kept[dropped]
        if kept and rng.random() < 0.2:
            gone = rng.choice(list(kept))
            index.remove(gone)
            del kept[gone]
        assert set(kept) == {seq_id for seq_id in range(400) if seq_id in index}
        assert len(index) == len(kept) <= 6
    for seq_id in tuple(kept):
        index.remove(seq_id)
    assert not index._by_key


def common(left: "array[int]", right: "array[int]") -> int:
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length
