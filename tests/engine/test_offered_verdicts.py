"""SAFE verdicts that are offered to whoever opened the stream, instead of waiting as updates."""

from array import array
from dataclasses import dataclass, field, replace

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import EngineError
from guardwire_server.core.step_plan import Read, StepPlan
from guardwire_server.core.verdict import RiskLevel, VerdictArrays
from guardwire_server.engine.backend import StreamReadings
from guardwire_server.engine.lag_samples import MAX_SAMPLES
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import ids, opening, packed, verdict
from tests.engine.observers import RememberedStream
from tests.engine.streams import SESSION_LIMITS, Server
from tests.engine.test_observed_streams import take_all

SAFE, CONTROVERSIAL = 20, 30


def judge_by_id(plan: StepPlan) -> StreamReadings:
    """A model whose verdict on a token is the token's own."""
    levels = {SAFE: RiskLevel.SAFE, CONTROVERSIAL: RiskLevel.CONTROVERSIAL}
    read = [(each, code) for chunk in plan.chunks for each, code in zip(chunk.ids, chunk.reads, strict=True)]
    return StreamReadings(
        responses=packed(verdict(levels[token_id]) for token_id, code in read if code == Read.RESPONSE),
        queries=packed(verdict(RiskLevel.SAFE) for _, code in read if code == Read.QUERY),
    )


@dataclass
class Offers:
    """Whom verdicts are offered to, and whether they are taken."""

    takes: bool = True
    indices: list[int] = field(default_factory=list)
    num_changes: int = 0

    def offer(self, index: int, verdicts: VerdictArrays, entry: int) -> bool:
        assert verdicts[entry].risk_level is RiskLevel.SAFE
        if self.takes:
            self.indices.append(index)
        return self.takes

    def change(self) -> None:
        self.num_changes += 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(server.backend, "step", judge_by_id)
    return server


def opened(server: Server, offers: Offers, observer: RememberedStream | None = None) -> StreamSession:
    stream = server.manager.open(observer, on_change=offers.change, on_verdict=offers.offer)
    stream.handle(opening("hello"))
    server.thread.run_until_idle()
    take_all(stream)
    offers.num_changes = 0
    return stream


def push(server: Server, stream: StreamSession, token_id: int) -> None:
    assert stream.push_token(token_id, server.clock())
    server.manager.send_step([stream.seq_id], array("i", (token_id,)))
    server.thread.run_until_idle()


async def test_what_is_taken_waits_nowhere(server: Server) -> None:
    offers = Offers()
    stream = opened(server, offers)
    for _ in range(2):
        push(server, stream, SAFE)
    assert offers.indices == [0, 1]
    assert not stream.has_updates
    assert offers.num_changes == 0


async def test_what_is_not_taken_waits_as_an_update(server: Server) -> None:
    offers = Offers(takes=False)
    stream = opened(server, offers)
    push(server, stream, SAFE)
    assert offers.num_changes == 1
    assert take_all(stream) == [ev.TokenVerdicts(0, packed([verdict(RiskLevel.SAFE)]))]


async def test_nothing_overtakes_what_waits(server: Server) -> None:
    offers = Offers()
    stream = opened(server, offers)
    for token_id in (CONTROVERSIAL, SAFE):
        push(server, stream, token_id)
    assert offers.indices == []
    (told,) = take_all(stream)
    assert isinstance(told, ev.TokenVerdicts)
    assert (told.start_index, len(told.verdicts)) == (0, 2)
    push(server, stream, SAFE)
    assert offers.indices == [2]


async def test_several_tokens_at_once_are_not_offered(server: Server) -> None:
    offers = Offers()
    stream = opened(server, offers)
    stream.handle(ev.TokensPushed(ids(SAFE, SAFE)))
    server.thread.run_until_idle()
    assert offers.indices == []
    (told,) = take_all(stream)
    assert isinstance(told, ev.TokenVerdicts)
    assert len(told.verdicts) == 2


async def test_a_followed_token_is_followed_until_its_update_is_taken(server: Server) -> None:
    offers, observer = Offers(), RememberedStream()
    stream = opened(server, offers, observer)
    push(server, stream, SAFE)
    assert offers.indices == []
    server.clock.advance(0.25)
    take_all(stream)
    assert observer.lags_s == [0.25]
    for _ in range(MAX_SAMPLES):  # all are followed elsewhere
        server.manager.lag_samples.take()
    push(server, stream, SAFE)
    assert offers.indices == [1]


async def test_who_was_held_is_listened_to_again(server: Server) -> None:
    offers = Offers()
    stream = opened(server, offers)
    num_pushed = 0
    while not stream.is_held:
        assert stream.push_token(SAFE, server.clock())
        server.manager.send_step([stream.seq_id], array("i", (SAFE,)))
        num_pushed += 1
    stream.handle(ev.TimePassed())
    assert stream.is_held
    server.thread.run_until_idle()
    take_all(stream)
    assert not stream.is_held
    push(server, stream, SAFE)
    assert offers.indices[-1] == num_pushed


async def test_a_verdict_that_is_taken_tells_of_the_room_it_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(session_limits=replace(SESSION_LIMITS, max_pending_tokens=1))
    monkeypatch.setattr(server.backend, "step", judge_by_id)
    offers = Offers()
    stream = opened(server, offers)
    assert stream.push_token(SAFE, server.clock())
    assert stream.is_held
    server.manager.send_step([stream.seq_id], array("i", (SAFE,)))
    server.thread.run_until_idle()
    assert offers.indices == [0]
    assert not stream.is_held
    assert offers.num_changes == 1


async def test_a_fault_of_whom_it_is_offered_to_costs_that_stream_alone(server: Server) -> None:
    def fail(index: int, verdicts: VerdictArrays, entry: int) -> bool:
        raise AssertionError

    offers = Offers()
    broken, whole = opened(server, offers), opened(server, offers)
    broken._on_verdict = fail
    for stream in (broken, whole):
        assert stream.push_token(SAFE, server.clock())
    server.manager.send_step([broken.seq_id, whole.seq_id], array("i", (SAFE, SAFE)))
    server.thread.run_until_idle()
    assert broken.ended is not None
    assert isinstance(broken.ended.error, EngineError)
    assert whole.ended is None
    assert offers.indices == [0]
