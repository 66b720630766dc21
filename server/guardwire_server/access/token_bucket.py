"""A token bucket: so many at once, and so many a second in the long run. Pure: the time is passed in."""

SLACK_TOKENS = 1e-6
"""What may be missing all the same: sums of fractions are not exact, and who has waited long enough must be let in."""


class TokenBucket:
    """Owner: the tenant's usage.

    Invariant: within any `t` seconds at most `burst + rate_per_s * t` tokens are taken, but for the slack.
    """

    def __init__(self, rate_per_s: float, burst: int, now_s: float) -> None:
        """A full bucket at the time `now_s`, in seconds of any steady clock."""
        self.rate_per_s = rate_per_s
        self.burst = burst
        self._level = float(burst)
        self._filled_s = now_s

    def change(self, rate_per_s: float, burst: int, now_s: float) -> None:
        """Goes on with another rate; what was gained by the old one until now stays, as far as it finds room."""
        self._fill(now_s)
        self.rate_per_s, self.burst = rate_per_s, burst
        self._level = min(self._level, burst)

    def take(self, num_tokens: int, now_s: float) -> bool:
        """Takes them if all are there; otherwise none."""
        self._fill(now_s)
        if num_tokens > self._level + SLACK_TOKENS:
            return False
        self._level -= num_tokens
        return True

    def take_some(self, num_tokens: int, now_s: float) -> int:
        """Takes them, or as many as are there; returns how many."""
        self._fill(now_s)
        num_taken = min(num_tokens, max(0, int(self._level + SLACK_TOKENS)))
        self._level -= num_taken
        return num_taken

    def wait_s(self, num_tokens: int, now_s: float) -> float:
        """How long it takes, if nobody takes any, until so many are there; more than `burst` never are."""
        self._fill(now_s)
        return max(0.0, (min(num_tokens, self.burst) - self._level) / self.rate_per_s)

    def _fill(self, now_s: float) -> None:
        if now_s > self._filled_s:
            self._level = min(self.burst, self._level + (now_s - self._filled_s) * self.rate_per_s)
            self._filled_s = now_s
