"""ModerateStreams: many conversations on one call, each as if it had a call of its own."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc.server import MODERATION_SERVICE
from tests.rpc.bystander import Bystander
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import answer_ids, finish, opening, rollback, tokens, user, user_turn
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.stream_call import WAIT_S, Received, TokenVerdict, assert_same_prompt_verdict, assert_same_verdicts

Request = pb.ModerateStreamRequest


@pytest.fixture
async def call(server: RunningServer) -> AsyncIterator[ManyCall]:
    async with ManyCall(server) as many:
        yield many


def conversation(number: int) -> list[Request]:
    """A stream's requests: an answer in pieces, a rollback, another turn."""
    rng, ids = random.Random(number), answer_ids(60, seed=number)
    requests, start = [opening([user(f"Question number {number}?")])], 0
    while start < len(ids):
        stop = start + rng.randint(1, 9)
        requests.append(tokens(ids[start:stop], start_index=start))
        start = stop
    requests.insert(4, rollback(0))
    requests.insert(5, tokens(ids[:3]))
    num_rolled_back = sum(len(request.tokens.token_ids) for request in requests[1:4])
    for request in requests[6:]:
        request.tokens.start_index += 3 - num_rolled_back
    return [*requests, user_turn("And then?"), tokens(ids[:7]), finish()]


def valid(received: Received) -> list[TokenVerdict]:
    """The last verdict for every index: of what a rollback takes back, a caller may or may not have been told."""
    by_index = {verdict.index: verdict for verdict in received.verdicts}
    return [by_index[index] for index in sorted(by_index)]


async def solo(server: RunningServer, requests: Sequence[Request]) -> Received:
    async with server.stream() as call:
        await call.send(*requests)
        return await call.read_all()


async def test_every_stream_is_as_on_a_call_of_its_own(start_server: StartServer) -> None:
    server = await start_server(max_sessions=16)
    conversations = {1000 + 7 * number: conversation(number) for number in range(16)}
    expected = {stream_id: await solo(server, requests) for stream_id, requests in conversations.items()}
    left = {stream_id: list(requests) for stream_id, requests in conversations.items()}
    rng = random.Random(3)
    async with ManyCall(server) as call:
        while left:
            chosen = rng.sample(sorted(left), rng.randint(1, len(left)))
            taken = []
            for stream_id in chosen:
                num_taken = min(rng.randint(0, 2), len(left[stream_id]))
                taken += [(stream_id, left[stream_id].pop(0)) for _ in range(num_taken)]
            left = {stream_id: requests for stream_id, requests in left.items() if requests}
            await call.send(*taken)
        assert await call.read_to_the_end() is grpc.StatusCode.OK
    assert not call.errors
    for stream_id, alone in expected.items():
        received = call.received[stream_id]
        assert_same_verdicts(valid(received), valid(alone))
        for together, apart in zip(received.prompt_verdicts, alone.prompt_verdicts, strict=True):
            assert_same_prompt_verdict(together, apart)
        assert received.summary
        assert alone.summary
        for field in ("num_tokens", "action", "risk_level", "num_safe_tokens", "num_unsafe_tokens"):
            assert getattr(received.summary, field) == getattr(alone.summary, field)
    await server.settled()


async def test_an_error_ends_its_stream_alone(server: RunningServer, bystander: Bystander, call: ManyCall) -> None:
    ids = answer_ids(6)
    await call.send((1, opening()), (2, opening()), (1, tokens(ids)))
    await call.send((1, tokens([5, 2**31 - 1])), (2, tokens(ids)), (2, finish()))
    await call.read_until(call.has_ended(1, 2))
    assert len(call.received[1].verdicts) == len(ids), "what was pushed before is judged"
    error = call.errors[1]
    assert grpc.StatusCode.INVALID_ARGUMENT.value[0] == error.code
    assert (error.reason, error.field) == ("TOKEN_ID_BEYOND_VOCABULARY", "tokens.token_ids[1]")
    assert "not a token, ids must be below" in error.message
    assert call.summary(2)
    assert await call.read_to_the_end() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "request_", [tokens([5]), finish(), rollback(0), Request()], ids=["tokens", "finish", "rollback", "empty"]
)
async def test_a_stream_begins_with_open(bystander: Bystander, call: ManyCall, request_: Request) -> None:
    await call.send((7, request_), (8, opening()), (8, finish()))
    await call.read_until(call.has_ended(7, 8))
    assert call.errors[7].reason == ("OPEN_REQUIRED" if request_.WhichOneof("request") else "EMPTY_REQUEST")
    assert call.summary(8)


async def test_a_name_is_free_again_once_its_stream_has_ended(call: ManyCall) -> None:
    for _ in range(3):
        await call.send((1, opening()), (1, tokens(answer_ids(3))), (1, finish()))
        await call.read_until(call.has_ended(1))
        assert len(call.received.pop(1).verdicts) == 3
    await call.send((1, opening()), (1, opening()))
    await call.read_until(call.has_ended(1))
    assert call.errors.pop(1).code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    await call.send((1, opening()), (1, finish()))
    await call.read_until(call.has_ended(1))
    assert call.summary(1)


async def test_streams_that_did_not_finish_are_abandoned(bystander: Bystander, call: ManyCall) -> None:
    await call.send((1, opening()), (2, opening()), (2, tokens(answer_ids(2))), (2, finish()))
    assert await call.read_to_the_end() is grpc.StatusCode.OK
    assert {stream_id: error.reason for stream_id, error in call.errors.items()} == {1: "ABANDONED"}
    assert call.summary(2)


async def test_an_empty_call_ends_well(call: ManyCall) -> None:
    await call.send()
    assert await call.read_to_the_end() is grpc.StatusCode.OK


async def test_more_streams_than_the_server_takes(server: RunningServer, call: ManyCall) -> None:
    limit = server.config.max_sessions
    await call.send(*((number, opening()) for number in range(limit + 2)))
    await call.read_until(lambda: len(call.errors) == 2)
    assert {error.reason for error in call.errors.values()} == {"TOO_MANY_SESSIONS"}
    assert {error.retry_delay.ToSeconds() for error in call.errors.values()} == {1}
    assert set(call.errors) == {limit, limit + 1}
    await call.send(*((number, finish()) for number in range(limit)))
    await call.read_until(call.has_ended(*range(limit)))


async def test_bytes_that_are_no_message_end_the_call(server: RunningServer, bystander: Bystander) -> None:
    call: Any = server.channel.stream_stream(f"/{MODERATION_SERVICE}/ModerateStreams")()
    item = pb.StreamRequest(stream_id=1, request=opening())
    await call.write(pb.ModerateStreamsRequest(requests=[item]).SerializeToString())
    await call.read()
    await call.write(b"\xff\xff\xff")

    async def read_on() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    failure = await failure_of(read_on())
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_a_cancelled_call_leaves_no_stream(server: RunningServer, bystander: Bystander) -> None:
    async with ManyCall(server) as call:
        await call.send(*((number, opening()) for number in range(4)))
        await call.read_until(lambda: len(call.received) == 4)
    await server.settled(num_sessions=1)


async def test_a_failed_step_ends_the_streams_of_that_step(server: RunningServer, call: ManyCall) -> None:
    await call.send((1, opening()), (2, opening()))
    await call.read_until(call.has_judged_prompts(1, 2))
    server.stream_gate.fail()
    await call.send((1, tokens(answer_ids(1))))
    await call.read_until(call.has_ended(1))
    assert call.errors[1].code == grpc.StatusCode.INTERNAL.value[0]
    assert call.errors[1].request_id in call.errors[1].message
    assert call.errors[1].request_id
    await call.send((2, tokens(answer_ids(2))), (2, finish()))
    await call.read_until(call.has_ended(2))
    assert len(call.received[2].verdicts) == 2


async def test_verdicts_that_wait_together_leave_together(server: RunningServer, call: ManyCall) -> None:
    """While a step stands, tokens gather; their verdicts come in one update a stream and one message for all."""
    streams = (1, 2, 3)
    await call.send(*((number, opening()) for number in streams))
    await call.read_until(call.has_judged_prompts(*streams))
    server.stream_gate.hold()
    await call.send((1, tokens([5])))
    await server.stream_gate.arrival()
    for token_id in range(6, 26):
        await call.send(*((number, tokens([token_id])) for number in streams))
    num_before = call.num_messages
    server.stream_gate.release()
    await call.read_until(lambda: all(call.has_verdicts(number, 20)() for number in streams))
    assert call.num_messages - num_before <= 10, "far fewer than the 20 that came"
    await call.send(*((number, finish()) for number in streams))
    await call.read_until(call.has_ended(*streams))
    assert [verdict.index for verdict in call.received[1].verdicts] == list(range(21))


async def test_a_stream_that_runs_ahead_holds_the_call_and_loses_nothing(start_server: StartServer) -> None:
    server = await start_server(max_pending_tokens=16)
    async with ManyCall(server) as call:
        await call.send((1, opening()))
        ids = answer_ids(200)
        sending = [call.send((1, tokens(ids[start : start + 10]))) for start in range(0, 200, 10)]
        sent = asyncio.create_task(asyncio.wait_for(_in_order([*sending, call.send((1, finish()))]), WAIT_S))
        await call.read_until(call.has_ended(1))
        await sent
        assert [verdict.index for verdict in call.received[1].verdicts] == list(range(200))
    await server.settled()


async def test_a_server_that_stops_tells_every_stream(start_server: StartServer) -> None:
    server = await start_server(grace_s=5.0)
    async with ManyCall(server) as call:
        await call.send((1, opening()), (2, opening()))
        await call.read_until(lambda: len(call.received) == 2)
        stopping = asyncio.create_task(server.stop())
        await call.read_until(lambda: all(one.draining for one in call.received.values()))
        await call.send((1, finish()), (3, opening()), (2, finish()))
        await call.read_until(call.has_ended(1, 2, 3))
        assert call.errors[3].reason == "DRAINING"
        assert call.errors[3].code == grpc.StatusCode.UNAVAILABLE.value[0]
        await assert_ends_because_the_server_stopped(call)
        await asyncio.wait_for(stopping, WAIT_S)


@pytest.mark.parametrize("num_streams", [0, 2])
async def test_a_call_whose_time_to_end_is_over(start_server: StartServer, num_streams: int) -> None:
    server = await start_server(grace_s=0.1)
    async with ManyCall(server) as call:
        await call.send((0, rollback(0)), *((stream_id, opening()) for stream_id in range(1, num_streams + 1)))
        await call.read_until(lambda: 0 in call.errors and len(call.received) == num_streams)
        stopping = asyncio.create_task(server.stop())
        await assert_ends_because_the_server_stopped(call)
        assert [call.errors[stream_id].reason for stream_id in call.received] == ["DRAINING"] * num_streams
        await asyncio.wait_for(stopping, WAIT_S)


async def assert_ends_because_the_server_stopped(call: ManyCall) -> None:
    """Reads to the end of a call whose input goes on."""
    failure = await failure_of(call.read_until(lambda: False))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert failure.retry_after_s == 1.0


async def _in_order(sendings: Sequence[Any]) -> None:
    for sending in sendings:
        await sending
