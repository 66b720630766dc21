"""Which tokens are template and not text.

Qwen3Guard-Stream was trained and evaluated on what stands between the template's tokens; the template's own tokens
advance the cache but mean nothing by themselves, and scoring them raises false alarms (seen in several ports of the
model). So every pushed token gets its verdict, and scaffold never raises a decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Tells scaffold by id: `control_ids` always are; `newline_ids` are when they follow a control token."""

    control_ids: frozenset[int]
    newline_ids: frozenset[int]

    def marks(self, ids: Sequence[int], previous_id: int | None) -> bytes:
        """One 0 or 1 for each id; `previous_id` is the token before in the same answer, None at its beginning."""
        if previous_id not in self.control_ids and self.control_ids.isdisjoint(ids):
            return bytes(len(ids))
        marks = bytearray(len(ids))
        for offset, token_id in enumerate(ids):
            follows_control = previous_id in self.control_ids
            marks[offset] = token_id in self.control_ids or (follows_control and token_id in self.newline_ids)
            previous_id = token_id
        return bytes(marks)
