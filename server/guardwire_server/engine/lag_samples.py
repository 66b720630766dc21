"""How long tokens wait for their verdicts: from the caller's message to the message that answers it."""

from collections.abc import Callable

MAX_SAMPLES = 8
"""Tokens that are followed at once, over all streams: a histogram costs as much to fill as judging a token costs in
Python, so of a step with hundreds of tokens some are followed, and of small steps nearly all."""


class LagSamples:
    """How many tokens are being followed. Owner: the session manager. Thread: the event loop."""

    def __init__(self, max_samples: int) -> None:
        self._num_left = max_samples
        self.has_room = max_samples > 0

    def take(self) -> None:
        """One more is followed; only while there is room."""
        self._num_left -= 1
        self.has_room = self._num_left > 0

    def give_back(self) -> None:
        """One has been answered, or never will be."""
        self._num_left += 1
        self.has_room = True


class FollowedToken:
    """The token of one stream that is followed, if any. Owner: the stream. Thread: the event loop."""

    def __init__(self, samples: LagSamples, on_lag: Callable[[float], None]) -> None:
        self._samples = samples
        self._on_lag = on_lag
        self._pushed: tuple[int, float] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a token of the stream is followed, and not answered yet."""
        return self._pushed is not None

    def follow(self, index: int, now_s: float) -> None:
        """Follows the token at `index`, pushed now, if there is room and none of this stream is followed."""
        if self._pushed is None and self._samples.has_room:
            self._samples.take()
            self._pushed = index, now_s

    def answered(self, stop_index: int, now_s: Callable[[], float]) -> None:
        """The verdicts on all tokens before `stop_index` are on their way to the caller."""
        if self._pushed is not None and self._pushed[0] < stop_index:
            self._on_lag(now_s() - self._pushed[1])
            self.lose()

    def lose(self) -> None:
        """Follows it no more: it may never be answered."""
        if self._pushed is not None:
            self._pushed = None
            self._samples.give_back()
