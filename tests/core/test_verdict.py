from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardwire_server.core.verdict import (
    CATEGORY_NAMES,
    Category,
    RiskLevel,
    RiskProbabilities,
    Verdict,
    VerdictArrays,
)
from tests.core.fakes import packed, unpacked, verdict
from tests.core.strategies import BOUNDED, verdicts


def test_levels_rise() -> None:
    assert RiskLevel.SAFE < RiskLevel.CONTROVERSIAL < RiskLevel.UNSAFE


def test_every_category_has_a_name_of_its_own() -> None:
    assert set(CATEGORY_NAMES) == set(Category)
    assert len(set(CATEGORY_NAMES.values())) == len(Category)


@pytest.mark.parametrize(
    ("probabilities", "level"),
    [
        (RiskProbabilities(0.5, 0.25, 0.25), RiskLevel.SAFE),
        (RiskProbabilities(0.25, 0.5, 0.25), RiskLevel.CONTROVERSIAL),
        (RiskProbabilities(0.25, 0.25, 0.5), RiskLevel.UNSAFE),
        (RiskProbabilities(0.5, 0.5, 0.0), RiskLevel.CONTROVERSIAL),
        (RiskProbabilities(0.5, 0.0, 0.5), RiskLevel.UNSAFE),
        (RiskProbabilities(0.0, 0.5, 0.5), RiskLevel.UNSAFE),
    ],
)
def test_between_equals_the_more_harmful_level_wins(probabilities: RiskProbabilities, level: RiskLevel) -> None:
    assert probabilities.risk_level is level


def test_probability_of_a_level() -> None:
    probabilities = RiskProbabilities(0.125, 0.25, 0.625)
    assert [probabilities.of(level) for level in RiskLevel] == [0.125, 0.25, 0.625]


@BOUNDED
@given(st.lists(verdicts(), max_size=12))
def test_arrays_hold_what_was_put_in(texts: list[Verdict]) -> None:
    arrays = packed(texts)
    assert len(arrays) == len(texts)
    assert unpacked(arrays) == texts


@BOUNDED
@given(st.lists(verdicts(), max_size=12), st.data())
def test_slice_is_the_slice_of_the_list(texts: list[Verdict], data: st.DataObject) -> None:
    arrays = packed(texts)
    for _ in range(2):  # a slice of a slice, too
        start = data.draw(st.integers(0, len(texts)))
        stop = data.draw(st.integers(start, len(texts)))
        arrays, texts = arrays.slice(start, stop), texts[start:stop]
        assert unpacked(arrays) == texts
        assert arrays == packed(texts)
        assert VerdictArrays.join([arrays, arrays]) == packed([*texts, *texts])
        for part in ("risk_levels", "probabilities", "categories", "category_probabilities"):
            assert getattr(arrays, part) == getattr(packed(texts), part)


@BOUNDED
@given(st.lists(verdicts(), min_size=1), st.data())
def test_a_safe_verdict_is_told_from_the_others(texts: list[Verdict], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(texts) - 1))
    arrays = packed(texts).slice(start, len(texts))
    assert arrays.safe_marks() == [text.risk_level is RiskLevel.SAFE for text in texts[start:]]


def test_verdicts_that_differ_are_not_equal() -> None:
    one, other = (packed([verdict(level)]) for level in (RiskLevel.SAFE, RiskLevel.UNSAFE))
    assert one != other
    assert one != [verdict(RiskLevel.SAFE)]


def test_safe_entries_have_no_category() -> None:
    arrays = packed([verdict(RiskLevel.SAFE), verdict(RiskLevel.UNSAFE, category=Category.PII)])
    assert [arrays[0].category, arrays[1].category] == [None, Category.PII]


def test_verdicts_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        verdict(RiskLevel.SAFE).risk_level = RiskLevel.UNSAFE  # type: ignore[misc]
