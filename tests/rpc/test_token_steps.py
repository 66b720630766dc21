"""The packed form of ModerateStreams: one token for each of many streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.rpc import many_streams
from guardwire_server.rpc.many_streams import MAX_RESPONSES
from guardwire_server.rpc.requests import MAX_STEP_TOKENS
from guardwire_server.rpc.step_writer import MAX_RUN
from tests.rpc.bystander import Bystander
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import answer_ids, finish, opening, rollback, text, tokens
from tests.rpc.packed import token_step
from tests.rpc.running_server import RunningServer, StartServer, failure_of
from tests.rpc.scripted_model import SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.rpc.stream_call import WAIT_S, assert_same_verdicts

NUM_STREAMS = 3


@pytest.fixture
async def call(server: RunningServer) -> AsyncIterator[ManyCall]:
    async with ManyCall(server) as many:
        yield many


async def open_all(call: ManyCall, num_streams: int = NUM_STREAMS) -> range:
    streams = range(1, num_streams + 1)
    await call.send(*((number, opening()) for number in streams))
    await call.read_until(call.has_judged_prompts(*streams))
    return streams


async def test_steps_say_what_single_messages_say(server: RunningServer, call: ManyCall) -> None:
    streams = await open_all(call)
    answers = {number: answer_ids(12, seed=number) for number in streams}
    for index in range(12):
        await call.send_step(*((number, answers[number][index]) for number in streams))
        if index < 4:  # later ones come as they come
            await call.read_until(lambda count=index + 1: all(call.has_verdicts(one, count)() for one in streams))  # type: ignore[misc]
    await call.send(*((number, finish()) for number in streams))
    await call.read_until(call.has_ended(*streams))
    for number in streams:
        async with server.stream() as alone:
            expected = await alone.run(opening(), tokens(answers[number]))
        assert_same_verdicts(call.received[number].verdicts, expected.verdicts)
        for field in ("num_tokens", "action", "risk_level", "num_safe_tokens", "num_unsafe_tokens"):
            assert getattr(call.received[number].summary, field) == getattr(expected.summary, field)
    assert call.num_packed >= 4 * NUM_STREAMS, "verdicts come packed"


async def test_a_caller_that_packs_nothing_is_told_nothing_packed(call: ManyCall) -> None:
    streams = await open_all(call)
    await call.send(*((number, tokens([5])) for number in streams), *((number, finish()) for number in streams))
    await call.read_until(call.has_ended(*streams))
    assert call.num_packed == 0


async def test_a_step_comes_after_the_requests_of_its_message(call: ManyCall) -> None:
    await open_all(call, 2)
    items = [pb.StreamRequest(stream_id=1, request=tokens([5, 6])), pb.StreamRequest(stream_id=3, request=opening())]
    await call.send_message(pb.ModerateStreamsRequest(requests=items, step=token_step((1, 7), (2, 8), (3, 9), (3, 4))))
    await call.send(*((number, finish()) for number in (1, 2, 3)))
    await call.read_until(call.has_ended(1, 2, 3))
    assert [verdict.index for verdict in call.received[1].verdicts] == [0, 1, 2]
    assert [verdict.index for verdict in call.received[3].verdicts] == [0, 1]


async def test_decisions_come_behind_their_verdicts(server: RunningServer, call: ManyCall) -> None:
    server.stream_gate.substitute(ScriptedModel())
    streams = await open_all(call, 3)
    for first, second, third in ((SAFE_ID, UNSAFE_ID, SAFE_ID), (SAFE_ID, UNSAFE_ID, UNSAFE_ID)) * 3:
        await call.send_step((1, first), (2, second), (3, third))
    await call.send(*((number, finish()) for number in streams))
    await call.read_until(call.has_ended(*streams))
    assert [len(call.received[number].decisions) for number in streams] == [0, 1, 0]
    blocked = call.received[2]
    (decision,) = blocked.decisions
    assert (decision.action, decision.token_index, decision.cut_index) == (pb.ACTION_BLOCK, 1, 0)
    assert blocked.kinds.index("decision") > blocked.kinds.index("verdicts")
    assert [verdict.index for verdict in blocked.verdicts] == list(range(6))
    assert [verdict.risk_level for verdict in blocked.verdicts] == [pb.RISK_LEVEL_UNSAFE] * 6


async def test_what_a_message_has_no_room_for_comes_in_order(
    server: RunningServer, call: ManyCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_streams, "MAX_STEP_TOKENS", NUM_STREAMS - 1)
    server.stream_gate.substitute(ScriptedModel())
    streams = await open_all(call)
    for _ in range(MAX_RUN):  # so few of a stream come packed even if they come at once
        await call.send_step(*((number, SAFE_ID) for number in streams))
    await call.send(*((number, finish()) for number in streams))
    await call.read_until(call.has_ended(*streams))
    for number in streams:
        assert [verdict.index for verdict in call.received[number].verdicts] == list(range(MAX_RUN))
    assert call.num_packed == MAX_RUN * NUM_STREAMS


async def test_scaffold_is_marked_as_ever(server: RunningServer, call: ManyCall) -> None:
    await open_all(call, 1)
    assert server.models.stream
    (scaffold_id,) = server.models.stream.tokenizer.encode_template("<think>")
    for token_id in (5, scaffold_id, 6):
        await call.send_step((1, token_id))
    await call.send((1, finish()))
    await call.read_until(call.has_ended(1))
    assert [verdict.is_scaffold for verdict in call.received[1].verdicts] == [False, True, False]


async def test_rollbacks_and_steps_keep_their_order(call: ManyCall) -> None:
    await open_all(call, 2)
    for token_id in (5, 6, 7):
        await call.send_step((1, token_id), (2, token_id))
    await call.send((1, rollback(1)))
    await call.send_step((1, 8), (2, 8))
    await call.send((1, finish()), (2, finish()))
    await call.read_until(call.has_ended(1, 2))
    assert call.summary(1)
    assert [call.received[number].summary.num_tokens for number in (1, 2)] == [2, 4]  # type: ignore[union-attr]
    assert call.received[1].verdicts[-1].index == 1


async def test_bad_tokens_end_their_streams_alone(bystander: Bystander, call: ManyCall) -> None:
    await open_all(call, 3)
    await call.send_step((1, 5), (2, 2**31 - 1), (9, 5), (3, 5))
    await call.send((1, finish()), (3, finish()))
    await call.read_until(call.has_ended(1, 2, 3, 9))
    assert call.errors[2].reason == "TOKEN_ID_BEYOND_VOCABULARY"
    assert call.errors[2].field == "step.token_ids[1]"
    assert call.errors[9].reason == "OPEN_REQUIRED"
    assert set(call.errors) == {2, 9}
    assert [len(call.received[number].verdicts) for number in (1, 3)] == [1, 1]


async def test_a_stream_opened_for_text_refuses_tokens(bystander: Bystander, call: ManyCall) -> None:
    await call.send((1, opening(input=pb.INPUT_KIND_TEXT)), (1, text("Hello", flush=True)), (2, opening()))
    await call.send_step((1, 5), (2, 5))
    await call.send((2, finish()))
    await call.read_until(call.has_ended(1, 2))
    assert call.errors[1].reason == "WRONG_INPUT_KIND"


@pytest.mark.parametrize(
    ("step", "reason", "message"),
    [
        (pb.TokenStep(stream_ids=[1, 2], token_ids=[5]), "STEP_LENGTHS_DIFFER", "1 ids for 2 streams"),
        (token_step(*((1, 5),) * (MAX_STEP_TOKENS + 1)), "TOO_MANY_TOKENS", f"the limit is {MAX_STEP_TOKENS}"),
    ],
    ids=["lengths", "size"],
)
async def test_a_malformed_step_ends_the_call(
    server: RunningServer, bystander: Bystander, step: pb.TokenStep, reason: str, message: str
) -> None:
    call = server.stub.ModerateStreams()
    await call.write(pb.ModerateStreamsRequest(step=step))

    async def read_on() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    failure = await failure_of(read_on())
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert failure.field == "step.token_ids"
    assert message in failure.message
    await server.settled(num_sessions=1)


async def test_steps_that_run_ahead_hold_the_call_and_lose_nothing(start_server: StartServer) -> None:
    server = await start_server(max_pending_tokens=16)
    async with ManyCall(server) as call:
        await open_all(call, 2)

        async def send() -> None:
            for token_id in answer_ids(150):
                await call.send_step((1, token_id), (2, token_id))
            await call.send((1, finish()), (2, finish()))

        sending = asyncio.create_task(asyncio.wait_for(send(), WAIT_S))
        await call.read_until(call.has_ended(1, 2))
        await sending
        for number in (1, 2):
            assert [verdict.index for verdict in call.received[number].verdicts] == list(range(150))
    await server.settled()


async def test_a_context_that_overflows_ends_its_stream_alone(start_server: StartServer) -> None:
    server = await start_server(max_context_tokens=64)
    async with ManyCall(server) as call:
        await open_all(call, 2)
        left = call.received[1].opened.num_tokens_left  # type: ignore[union-attr]
        for token_id in answer_ids(left + 1):
            await call.send_step((1, token_id))
        await call.send_step((2, 5))
        await call.send((2, finish()))
        await call.read_until(call.has_ended(1, 2))
        assert (call.errors[1].reason, len(call.received[1].verdicts)) == ("CONTEXT_OVERFLOW", left)
        assert call.summary(2)
    await server.settled()


async def test_a_message_holds_no_more_responses_than_it_may(call: ManyCall) -> None:
    await open_all(call, 1)
    num_rollbacks = 3 * MAX_RESPONSES
    num_before = call.num_messages
    await call.send(*((1, rollback(0)),) * num_rollbacks, (1, finish()))
    await call.read_until(call.has_ended(1))
    assert len(call.received[1].rolled_back) == num_rollbacks
    assert call.num_messages - num_before >= 3


async def test_streams_that_are_not_open_are_refused_one_message_after_another(call: ManyCall) -> None:
    """Nobody reads meanwhile: what cannot be told yet holds the input back."""
    num_unknown = 4 * MAX_RESPONSES
    sending = [call.send_step(*((number + part, 5) for number in range(0, num_unknown, 4))) for part in range(4)]
    sent = asyncio.create_task(asyncio.wait_for(_in_order(sending), WAIT_S))
    await call.read_until(lambda: len(call.errors) == num_unknown)
    await sent
    assert {error.reason for error in call.errors.values()} == {"OPEN_REQUIRED"}


async def _in_order(sendings: Sequence[Awaitable[None]]) -> None:
    for sending in sendings:
        await sending
