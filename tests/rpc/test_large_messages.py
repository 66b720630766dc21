"""Messages of ModerateStreams that hold a lot of work: bounded, in turns with others, and no work for nothing."""

import asyncio
import itertools

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.access.metering import Meter
from guardwire_server.core.events import CallerEvent, UserTurnAdded
from guardwire_server.rpc import many_streams
from guardwire_server.rpc.requests import MAX_REQUESTS, RequestReader
from tests.rpc.bystander import Bystander
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import answer_ids, finish, opening, rollback, tokens, user_turn
from tests.rpc.running_server import RunningServer, failure_of


async def test_as_many_requests_as_a_message_may_hold(server: RunningServer, bystander: Bystander) -> None:
    async with ManyCall(server) as call:
        await call.send(*[(1, rollback(0))] * (MAX_REQUESTS - 2), (2, opening()), (2, finish()))
        await call.read_until(call.has_ended(1, 2))
        assert call.errors[1].reason == "OPEN_REQUIRED"
        assert call.summary(2)


async def test_more_requests_than_a_message_may_hold(server: RunningServer, bystander: Bystander) -> None:
    async with ManyCall(server) as call:
        await call.send(*[(1, rollback(0))] * (MAX_REQUESTS + 1))
        failure = await failure_of(call.read_until(lambda: False))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_REQUESTS")
    assert failure.field == "requests"
    assert failure.message == f"requests: {MAX_REQUESTS + 1} requests in one message, the limit is {MAX_REQUESTS}"


async def test_others_have_turns_between_the_requests_of_a_message(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_streams, "MAX_TURN_S", -1.0)  # every request takes too long
    num_turns, turns_seen = 0, list[int]()
    read = RequestReader.stream_event

    def watched(reader: RequestReader, request: pb.ModerateStreamRequest) -> CallerEvent:
        turns_seen.append(num_turns)
        return read(reader, request)

    async def take_turns() -> None:
        nonlocal num_turns
        while True:
            await asyncio.sleep(0)
            num_turns += 1

    monkeypatch.setattr(RequestReader, "stream_event", watched)
    other = asyncio.create_task(take_turns())
    async with ManyCall(server) as call:
        await call.send((1, opening()), *((number, rollback(0)) for number in range(2, 12)), (1, finish()))
        await call.read_until(call.has_ended(*range(1, 12)))
    other.cancel()
    assert len(turns_seen) == 12
    assert all(later > earlier for earlier, later in itertools.pairwise(turns_seen))


async def test_what_no_stream_hears_is_not_counted(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting renders user turns, which takes time."""
    counted: list[object] = []
    monkeypatch.setattr(Meter, "take_pushed", lambda _, event: counted.append(event))
    monkeypatch.setattr(Meter, "take_token", lambda _: counted.append("a token"))
    async with ManyCall(server) as call:
        await call.send((1, opening()), (1, user_turn("Who are you?")))
        await call.send((2, user_turn("Is there such a stream?")))
        server.stream_gate.hold()  # so that the first stream waits for verdicts when it is refused
        unheard = [(1, user_turn("Are you still there?")), (1, tokens(answer_ids(1)))]
        await call.send((1, tokens(answer_ids(3))), (1, rollback(1000)), *unheard)
        await call.read_until(call.has_ended(2))
        server.stream_gate.release()
        await call.read_until(call.has_ended(1))
        assert [call.errors[number].reason for number in (1, 2)] == ["ROLLBACK_OUT_OF_RANGE", "OPEN_REQUIRED"]
    (turn,) = (event for event in counted if isinstance(event, UserTurnAdded))
    assert turn.content == "Who are you?"
    assert "a token" not in counted
