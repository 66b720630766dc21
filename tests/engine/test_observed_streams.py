"""What a stream's observer is told, and which tokens are followed."""

from dataclasses import replace

import pytest

from guardwire_server.core import events as ev
from guardwire_server.core.errors import WrongState
from guardwire_server.engine.lag_samples import MAX_SAMPLES
from guardwire_server.engine.stream_session import StreamSession
from tests.core.fakes import ids, opening
from tests.engine.observers import RememberedStream
from tests.engine.streams import Server


def take_all(stream: StreamSession) -> list[ev.Update]:
    updates = []
    while (update := stream.take_update()) is not None:
        updates.append(update)
    return updates


def opened(
    server: Server, update_mode: ev.UpdateMode = ev.UpdateMode.EVERY_TOKEN
) -> tuple[StreamSession, RememberedStream]:
    observer = RememberedStream()
    stream = server.manager.open(observe=observer)
    stream.handle(replace(opening("hello"), update_mode=update_mode))
    server.thread.run_until_idle()
    take_all(stream)
    return stream, observer


async def test_everything_is_told_but_verdicts_on_tokens() -> None:
    server, observer = Server(), RememberedStream()
    stream = server.manager.open(observe=observer)
    stream.handle(opening("hello"))
    stream.handle(ev.TokensPushed(ids(20, 21, 22)))
    stream.handle(ev.FinishRequested())
    server.thread.run_until_idle()
    told = take_all(stream)
    stream.close()
    assert observer.ids == (stream.seq_id, stream.session_id)
    kinds = {type(update) for update in observer.updates}
    assert kinds == {ev.StreamOpened, ev.PromptVerdict, ev.DecisionTaken, ev.SummaryGiven}
    assert observer.updates == [update for update in told if not isinstance(update, ev.TokenVerdicts)]
    assert any(isinstance(update, ev.TokenVerdicts) for update in told)
    assert observer.ends == [(ev.StreamEnded(None), 3)]


async def test_a_stream_that_is_closed_early_tells_so_once() -> None:
    server = Server()
    stream, observer = opened(server)
    stream.handle(ev.TokensPushed(ids(20, 21)))
    stream.close()
    stream.close()
    assert observer.ends == [(None, 2)]


async def test_an_error_is_told() -> None:
    server = Server()
    stream, observer = opened(server)
    stream.handle(opening("again"))
    server.thread.run_until_idle()
    stream.close()
    ((end, num_tokens),) = observer.ends
    assert end
    assert isinstance(end.error, WrongState)
    assert num_tokens == 0


@pytest.mark.parametrize("is_short", [False, True])
async def test_a_token_is_followed_from_its_push_to_its_verdict(is_short: bool) -> None:
    server = Server()
    stream, observer = opened(server)
    if is_short:
        stream.push(20)
    else:
        stream.handle(ev.TokensPushed(ids(20)))
    server.clock.advance(0.5)
    server.thread.run_until_idle()
    server.clock.advance(0.25)  # it waits for its caller, too
    assert observer.lags_s == []
    take_all(stream)
    assert observer.lags_s == [0.75]


async def test_tokens_whose_verdicts_may_not_be_told_are_not_followed() -> None:
    server = Server()
    stream, observer = opened(server, ev.UpdateMode.ON_CHANGE)
    stream.handle(ev.TokensPushed(ids(20, 21, 22)))
    server.thread.run_until_idle()
    take_all(stream)
    stream.close()
    assert observer.lags_s == []
    assert server.manager.lag_samples.has_room


async def test_a_rollback_and_a_close_give_the_room_back() -> None:
    server = Server()
    first, observer = opened(server)
    first.handle(ev.TokensPushed(ids(20, 21)))
    first.handle(ev.RollbackRequested(0))
    server.thread.run_until_idle()
    take_all(first)
    assert observer.lags_s == []
    for _ in range(MAX_SAMPLES + 1):  # more than there is room for, had one been kept
        stream, _ = opened(server)
        stream.push(20)
        stream.close()
    assert server.manager.lag_samples.has_room
    first.push(23)
    server.clock.advance(1.0)
    server.thread.run_until_idle()
    take_all(first)
    assert observer.lags_s == [1.0]
