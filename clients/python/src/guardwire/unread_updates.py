"""The updates of a stream that its caller has not asked for yet."""

from __future__ import annotations

from collections import deque

import grpc

from guardwire.errors import UpdatesLost
from guardwire.results import TokenVerdicts, Update

MAX_UNREAD = 16_384
"""How many verdicts and other updates of one stream wait for its caller, a few megabytes.

That is twice the tokens of Qwen3Guard-Stream's context: an answer that fits there can always be read after it ended.
"""


class UnreadUpdates:
    """A queue that never makes the server wait and never grows beyond its bound.

    Updates come whether or not anyone iterates, since the decision in force is read from them. Where more wait than
    fit, all that wait are let go, and the next `take` says so: a caller who asks for updates misses none unawares, and
    one who only looks at the decision is not bothered. Owner: the stream.
    """

    def __init__(self, max_unread: int = MAX_UNREAD) -> None:
        self._max_unread = max_unread
        self._updates: deque[Update] = deque()
        self._num_unread = 0
        self._num_lost = 0

    def add(self, update: Update) -> None:
        """Takes an update; one that alone is beyond the bound is kept all the same."""
        if self._num_unread and self._num_unread + _size(update) > self._max_unread:
            self._num_lost += self._num_unread
            self._num_unread = 0
            self._updates.clear()
        self._updates.append(update)
        self._num_unread += _size(update)

    def take(self) -> Update | None:
        """The oldest update; None if none waits.

        Raises:
            UpdatesLost: Updates before that one were let go; asking again goes on with it.
        """
        if self._num_lost:
            message = f"{self._num_lost} verdicts and other updates were let go: more than {self._max_unread} waited"
            self._num_lost = 0
            raise UpdatesLost(message, grpc.StatusCode.DATA_LOSS)
        if not self._updates:
            return None
        update = self._updates.popleft()
        self._num_unread -= _size(update)
        return update


def _size(update: Update) -> int:
    return max(1, len(update)) if isinstance(update, TokenVerdicts) else 1
