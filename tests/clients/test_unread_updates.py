from __future__ import annotations

import pytest

from guardwire import PromptVerdict, TokenVerdicts, Update, UpdatesLost
from guardwire.unread_updates import UnreadUpdates

PROMPT = PromptVerdict(None, None, None, 0.0, 0)


def verdicts(start_index: int, number: int) -> TokenVerdicts:
    zeros, nothing = (0.0,) * number, (None,) * number
    return TokenVerdicts(start_index, nothing, zeros, zeros, zeros, nothing, zeros, (), ())


def test_what_fits_is_kept_in_order() -> None:
    unread = UnreadUpdates(max_unread=4)
    updates: list[Update] = [PROMPT, verdicts(0, 2), verdicts(2, 1)]
    for _ in range(3):
        for update in updates:
            unread.add(update)
        assert [unread.take() for _ in range(4)] == [*updates, None]


def test_what_does_not_fit_is_told_once_and_the_rest_goes_on() -> None:
    unread = UnreadUpdates(max_unread=4)
    for start in range(0, 10, 2):
        unread.add(verdicts(start, 2))
    with pytest.raises(UpdatesLost, match="8 verdicts and other updates"):
        unread.take()
    assert unread.take() == verdicts(8, 2)
    assert unread.take() is None


def test_one_update_beyond_the_bound_is_kept() -> None:
    unread = UnreadUpdates(max_unread=4)
    unread.add(verdicts(0, 9))
    assert unread.take() == verdicts(0, 9)


def test_empty_verdicts_count_too() -> None:
    unread = UnreadUpdates(max_unread=4)
    for _ in range(5):
        unread.add(verdicts(0, 0))
    with pytest.raises(UpdatesLost):
        unread.take()
