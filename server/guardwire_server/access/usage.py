"""What each tenant uses now, against what it may.

Theory of operation. A call finds its tenant's usage in `current_usage`, which is set before its handler begins and seen
by every task that the handler creates. Streams and Classify calls hold places for as long as they are open; tokens are
taken from a bucket that fills with time. New rules change the limits and leave the usage: whoever is beyond a new limit
keeps what he has and gets nothing more.
"""

import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from types import TracebackType

from guardwire_server.access.credentials import PresentedCredentials
from guardwire_server.access.rules import AccessRules, Tenant, TenantLimits
from guardwire_server.access.token_bucket import TokenBucket
from guardwire_server.core.errors import InvalidField, Overloaded

STREAM_RETRY_S, CALL_RETRY_S = 1.0, 0.5
"""When a place may be free again: nobody knows; what the server says when it is full itself."""


class Place:
    """One stream's or call's place. As a context manager it is released at the end; releasing it again does nothing."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def __enter__(self) -> "Place":
        """Nothing is left to do: the usage has given it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases it, whatever happened."""
        self.release()

    def release(self) -> None:
        """Gives the place back."""
        release, self._release = self._release, None
        if release is not None:
            release()


class TenantUsage:
    """What one tenant uses. Owner: `Tenants`. Thread: the event loop.

    Tokens are taken beside it too, where long conversations are tokenised, so their bucket has a lock.
    """

    def __init__(self, tenant: Tenant, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = tenant.name
        self.limits = TenantLimits()
        self.num_streams = 0
        self.num_calls = 0
        self._clock = clock
        self._bucket: TokenBucket | None = None
        self._bucket_lock = threading.Lock()
        self.change_limits(tenant.limits)

    @property
    def is_metered(self) -> bool:
        """Whether its tokens are counted."""
        return self._bucket is not None

    @property
    def is_idle(self) -> bool:
        """Whether it holds no place."""
        return not (self.num_streams or self.num_calls)

    def change_limits(self, limits: TenantLimits) -> None:
        """Goes on under other limits."""
        self.limits = limits
        with self._bucket_lock:
            if limits.tokens_per_s is None or limits.burst_tokens is None:
                self._bucket = None
            elif self._bucket is None:
                self._bucket = TokenBucket(limits.tokens_per_s, limits.burst_tokens, self._clock())
            else:
                self._bucket.change(limits.tokens_per_s, limits.burst_tokens, self._clock())

    def admit_stream(self) -> Place:
        """A place for a stream.

        Raises:
            Overloaded: All that the tenant may have are taken.
        """
        limit = self.limits.max_streams
        if limit is not None and self.num_streams >= limit:
            message = f"the tenant has {self.num_streams} streams open, its limit is {limit}"
            raise Overloaded("TENANT_STREAMS", message, STREAM_RETRY_S)
        self.num_streams += 1
        return Place(self._release_stream)

    def admit_call(self) -> Place:
        """A place for a Classify call.

        Raises:
            Overloaded: All that the tenant may have are taken.
        """
        limit = self.limits.max_classify_calls
        if limit is not None and self.num_calls >= limit:
            message = f"the tenant has {self.num_calls} Classify calls waiting, its limit is {limit}"
            raise Overloaded("TENANT_CALLS", message, CALL_RETRY_S)
        self.num_calls += 1
        return Place(self._release_call)

    def take_tokens(self, num_tokens: int, field: str) -> None:
        """Takes the tokens of a field, all or none. Any thread.

        Raises:
            Overloaded: They come too fast; it says when they would not.
            InvalidField: They are more than the tenant may ever push at once.
        """
        with self._bucket_lock:
            if self._bucket is None or self._bucket.take(num_tokens, self._clock()):
                return
            if num_tokens > self._bucket.burst:
                message = f"{num_tokens} tokens, the tenant's limit at once is {self._bucket.burst}"
                raise InvalidField("TENANT_BURST", field, message)
        raise self.too_fast(num_tokens)

    def take_some_tokens(self, num_tokens: int) -> int:
        """Takes so many tokens, or as many as there are; returns how many."""
        with self._bucket_lock:
            return num_tokens if self._bucket is None else self._bucket.take_some(num_tokens, self._clock())

    def too_fast(self, num_tokens: int) -> Overloaded:
        """The error for tokens that could not be taken: says when so many can be, rounded up to milliseconds."""
        with self._bucket_lock:
            wait_s = self._bucket.wait_s(num_tokens, self._clock()) if self._bucket else 0.0
        rate, burst = self.limits.tokens_per_s, self.limits.burst_tokens
        message = f"the tenant's limits are {burst} tokens at once and {rate:g} a second" if rate else "try again"
        return Overloaded("TENANT_RATE", message, math.ceil(wait_s * 1000) / 1000)

    def _release_stream(self) -> None:
        self.num_streams -= 1

    def _release_call(self) -> None:
        self.num_calls -= 1


class Tenants:
    """The rules in force, and the usage of every tenant. Owner: the server. Thread: the event loop.

    Invariant: every tenant of the rules has its usage here, and so has one that left them but holds a place still.
    """

    def __init__(self, rules: AccessRules, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rules = rules
        self._usages: dict[str, TenantUsage] = {}
        self.change_rules(rules)

    def change_rules(self, rules: AccessRules) -> None:
        """Puts other rules in force: for credentials from the next call on, for limits at once."""
        self._rules = rules
        self._usages = {
            name: usage for name, usage in self._usages.items() if name in rules.tenants or not usage.is_idle
        }
        for name, tenant in rules.tenants.items():
            if name in self._usages:
                self._usages[name].change_limits(tenant.limits)
            else:
                self._usages[name] = TenantUsage(tenant, self._clock)

    def identify(self, presented: PresentedCredentials, now: datetime) -> TenantUsage:
        """The usage of the tenant whose credentials these are.

        Raises:
            Unauthenticated: There is no credential, or it is not valid.
            PermissionDenied: It is valid, but belongs to no tenant here.
        """
        return self.usage(self._rules.identify(presented, now).name)

    def usage(self, name: str) -> TenantUsage:
        """The usage of a tenant of the rules."""
        return self._usages[name]


current_usage: ContextVar[TenantUsage | None] = ContextVar("current_usage", default=None)
"""The usage of the tenant whose call is being served; None where everybody is let in."""

_ANYBODY = Tenant("")


identify_caller: ContextVar[Callable[[], TenantUsage] | None] = ContextVar("identify_caller", default=None)
"""Asks anew who makes the call that is being served; None where everybody is let in."""


def renewed_usage(usage: TenantUsage) -> TenantUsage:
    """The usage that the caller's credential gives now, and its call has from now on; `usage` is what it had before.

    For calls that may outlive a credential: it may have expired, or been taken away or given to another tenant.

    Raises:
        Unauthenticated: It is not valid any more.
        PermissionDenied: It belongs to no tenant any more.
    """
    identify = identify_caller.get()
    if identify is None:
        return usage
    renewed = identify()
    current_usage.set(renewed)
    return renewed


def caller_usage() -> TenantUsage:
    """The usage of the tenant whose call is being served; where everybody is let in, one without limits."""
    return current_usage.get() or TenantUsage(_ANYBODY)
