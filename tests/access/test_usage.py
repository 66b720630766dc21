"""What tenants use: places are given back however a call ends, and tenants take nothing from each other."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from guardwire_server.access.credentials import PresentedCredentials
from guardwire_server.access.rules import AccessKey, AccessRules, Tenant, TenantLimits
from guardwire_server.access.usage import Place, Tenants, TenantUsage, caller_usage, current_usage
from guardwire_server.core.errors import InvalidField, Overloaded


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def usage(clock: Clock | None = None, **limits: int | float) -> TenantUsage:
    return TenantUsage(Tenant("acme", TenantLimits(**limits)), clock or Clock())  # type: ignore[arg-type]


def rules(**limits: TenantLimits) -> AccessRules:
    return AccessRules({name: Tenant(name, limit) for name, limit in limits.items()})


def test_streams_beyond_the_limit() -> None:
    tenant = usage(max_streams=2)
    first, _ = tenant.admit_stream(), tenant.admit_stream()
    with pytest.raises(Overloaded, match="2 streams open, its limit is 2") as raised:
        tenant.admit_stream()
    assert (raised.value.reason, raised.value.retry_after_s) == ("TENANT_STREAMS", 1.0)
    first.release()
    first.release()
    assert tenant.num_streams == 1
    with tenant.admit_stream():
        assert tenant.num_streams == 2
    assert tenant.num_streams == 1


def test_calls_beyond_the_limit() -> None:
    tenant = usage(max_classify_calls=1)
    with tenant.admit_call(), pytest.raises(Overloaded, match="its limit is 1") as raised:
        tenant.admit_call()
    assert raised.value.reason == "TENANT_CALLS"
    assert tenant.is_idle


def test_streams_and_calls_are_counted_apart() -> None:
    tenant = usage(max_streams=1, max_classify_calls=1)
    with tenant.admit_stream(), tenant.admit_call():
        assert (tenant.num_streams, tenant.num_calls) == (1, 1)
    assert tenant.is_idle


async def test_a_place_is_given_back_by_a_call_that_fails_or_is_cancelled() -> None:
    tenant, held = usage(max_streams=1), asyncio.Event()

    async def call() -> None:
        with tenant.admit_stream():
            held.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(call())
    await held.wait()
    assert tenant.num_streams == 1
    task.cancel()
    await asyncio.wait([task])
    assert tenant.is_idle
    with pytest.raises(ZeroDivisionError), tenant.admit_stream():
        raise ZeroDivisionError
    assert tenant.is_idle


def test_tokens_beyond_the_rate() -> None:
    clock = Clock()
    tenant = usage(clock, tokens_per_s=10.0, burst_tokens=20)
    tenant.take_tokens(20, "tokens.token_ids")
    with pytest.raises(Overloaded, match="20 tokens at once and 10 a second") as raised:
        tenant.take_tokens(5, "tokens.token_ids")
    assert (raised.value.reason, raised.value.retry_after_s) == ("TENANT_RATE", 0.5)
    clock.now_s += 0.5
    tenant.take_tokens(5, "tokens.token_ids")
    assert tenant.take_some_tokens(5) == 0


def test_waits_are_told_in_full() -> None:
    clock = Clock()
    tenant = usage(clock, tokens_per_s=3.0, burst_tokens=3)
    tenant.take_tokens(3, "text.text")
    with pytest.raises(Overloaded) as raised:
        tenant.take_tokens(1, "text.text")
    assert raised.value.retry_after_s == 0.334  # a third, rounded up
    clock.now_s += raised.value.retry_after_s
    tenant.take_tokens(1, "text.text")


def test_tokens_beyond_the_burst_are_an_error_of_the_field() -> None:
    tenant = usage(tokens_per_s=10.0, burst_tokens=20)
    with pytest.raises(InvalidField, match="21 tokens, the tenant's limit at once is 20") as raised:
        tenant.take_tokens(21, "open.conversation")
    assert (raised.value.reason, raised.value.field) == ("TENANT_BURST", "open.conversation")
    assert tenant.take_some_tokens(100) == 20  # nothing was taken


def test_who_is_not_metered_takes_what_he_wants() -> None:
    tenant = usage()
    tenant.take_tokens(10**9, "tokens.token_ids")
    assert tenant.take_some_tokens(10**9) == 10**9
    assert not tenant.is_metered


def test_tokens_are_taken_from_threads_too() -> None:
    tenant, taken = usage(tokens_per_s=1.0, burst_tokens=40_000), [0] * 4

    def take(place: int) -> None:
        taken[place] = sum(tenant.take_some_tokens(1) for _ in range(20_000))

    threads = [threading.Thread(target=take, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 40_000


def test_new_limits_leave_what_is_used() -> None:
    clock = Clock()
    tenants = Tenants(rules(acme=TenantLimits(max_streams=2, tokens_per_s=10.0, burst_tokens=20)), clock)
    acme = tenants.usage("acme")
    places = [acme.admit_stream(), acme.admit_stream()]
    acme.take_tokens(20, "text.text")
    tenants.change_rules(rules(acme=TenantLimits(max_streams=1, tokens_per_s=100.0, burst_tokens=20)))
    assert tenants.usage("acme") is acme
    assert acme.num_streams == 2
    with pytest.raises(Overloaded, match="2 streams open, its limit is 1"):
        acme.admit_stream()
    with pytest.raises(Overloaded) as raised:
        acme.take_tokens(10, "text.text")
    assert raised.value.retry_after_s == 0.1
    tenants.change_rules(rules(acme=TenantLimits()))
    acme.take_tokens(10**6, "text.text")
    for place in places:
        place.release()
    assert acme.is_idle


def test_a_tenant_that_left_and_came_back_still_has_its_streams() -> None:
    limits = TenantLimits(max_streams=1)
    tenants = Tenants(rules(acme=limits, beta=limits))
    acme, beta = tenants.usage("acme"), tenants.usage("beta")
    place = acme.admit_stream()
    tenants.change_rules(rules(beta=limits))
    tenants.change_rules(rules(acme=limits, beta=limits))
    assert tenants.usage("acme") is acme
    with pytest.raises(Overloaded):
        tenants.usage("acme").admit_stream()
    place.release()
    tenants.change_rules(rules(beta=limits))
    tenants.change_rules(rules(acme=limits, beta=limits))
    assert tenants.usage("acme") is not acme  # nothing was left to remember
    assert tenants.usage("beta") is beta


def test_identified_tenants_share_their_usage() -> None:
    keys = (AccessKey("one", "acme", bytes(32)), AccessKey("two", "acme", bytes([1] * 32)))
    tenants = Tenants(AccessRules({"acme": Tenant("acme")}, keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hmac.compare_digest", lambda _, digest: digest[0] == 1)
        found = tenants.identify(PresentedCredentials("gw_any"), datetime.now(UTC))
    assert found is tenants.usage("acme")


async def test_the_usage_of_a_call_is_seen_by_its_tasks_alone() -> None:
    async def serve(name: str) -> str:
        current_usage.set(usage_of[name])
        return await asyncio.create_task(asyncio.to_thread(lambda: caller_usage().name))

    usage_of = {name: TenantUsage(Tenant(name)) for name in ("acme", "beta")}
    assert await asyncio.gather(*(asyncio.create_task(serve(name)) for name in usage_of)) == ["acme", "beta"]
    assert caller_usage().name == ""
    assert not caller_usage().is_metered


NO_PLACE = Place(lambda: None)
"""What a refused admission leaves behind in `Usage`."""


class Usage(RuleBasedStateMachine):
    """Any order of admissions, releases and new limits: the counts are those of the places that are held."""

    streams: Bundle[Place] = Bundle("streams")
    calls: Bundle[Place] = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.tenants = Tenants(rules(acme=TenantLimits(max_streams=3, max_classify_calls=2)))
        self.acme = self.tenants.usage("acme")
        self.held = {"streams": 0, "calls": 0}

    @rule(target=streams)
    def admit_stream(self) -> Place:
        return self._admit("streams", self.acme.limits.max_streams)

    @rule(target=calls)
    def admit_call(self) -> Place:
        return self._admit("calls", self.acme.limits.max_classify_calls)

    @rule(place=consumes(streams), times=st.integers(1, 3))
    def release_stream(self, place: Place, times: int) -> None:
        self._release("streams", place, times)

    @rule(place=consumes(calls), times=st.integers(1, 3))
    def release_call(self, place: Place, times: int) -> None:
        self._release("calls", place, times)

    @rule(streams_limit=st.none() | st.integers(1, 5), calls_limit=st.none() | st.integers(1, 5), leaves=st.booleans())
    def change(self, streams_limit: int | None, calls_limit: int | None, leaves: bool) -> None:
        if leaves and not self.acme.is_idle:
            self.tenants.change_rules(rules())
        limits = TenantLimits(max_streams=streams_limit, max_classify_calls=calls_limit)
        self.tenants.change_rules(rules(acme=limits))

    @invariant()
    def counts_are_those_of_the_places(self) -> None:
        assert self.tenants.usage("acme") is self.acme
        assert (self.acme.num_streams, self.acme.num_calls) == (self.held["streams"], self.held["calls"])

    def _admit(self, kind: str, limit: int | None) -> Place:
        admit = self.acme.admit_stream if kind == "streams" else self.acme.admit_call
        if limit is not None and self.held[kind] >= limit:
            with pytest.raises(Overloaded):
                admit()
            return NO_PLACE
        self.held[kind] += 1
        return admit()

    def _release(self, kind: str, place: Place, times: int) -> None:
        self.held[kind] -= place is not NO_PLACE
        for _ in range(times):
            place.release()


TestUsage = Usage.TestCase
TestUsage.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
