from hypothesis import given
from hypothesis import strategies as st

from tests.core.fakes import FIRST_CHARACTER, IM_END, NEWLINE, THINK, THINK_END, FakeRenderer
from tests.core.strategies import BOUNDED

A = FIRST_CHARACTER
scaffold = FakeRenderer.scaffold


def test_control_tokens_are_scaffold_and_text_is_not() -> None:
    assert scaffold.marks([THINK, A, THINK_END, A, IM_END], None) == bytes((1, 0, 1, 0, 1))


def test_a_newline_is_scaffold_only_behind_a_control_token() -> None:
    assert scaffold.marks([NEWLINE, THINK, NEWLINE, NEWLINE, A, NEWLINE], None) == bytes((0, 1, 1, 0, 0, 0))


def test_the_token_before_counts() -> None:
    assert scaffold.marks([NEWLINE], THINK) == bytes((1,))
    assert scaffold.marks([NEWLINE], A) == bytes((0,))


def test_nothing_has_no_marks() -> None:
    assert scaffold.marks([], THINK) == b""


@BOUNDED
@given(st.lists(st.sampled_from((THINK, THINK_END, IM_END, NEWLINE, A)), max_size=10), st.integers(0, 10))
def test_marks_do_not_depend_on_chunks(token_ids: list[int], cut: int) -> None:
    head, tail = token_ids[:cut], token_ids[cut:]
    chunked = scaffold.marks(head, None) + scaffold.marks(tail, head[-1] if head else None)
    assert chunked == scaffold.marks(token_ids, None)
