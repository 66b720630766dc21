"""Callers that go away, in every state: nothing more is judged for them, and nothing of them is left."""

import asyncio
from collections.abc import Sequence

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.rpc.bystander import Bystander
from tests.rpc.messages import answer_ids, finish, opening, rollback, text, tokens, user_turn
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import StreamCall

STATES: dict[str, Sequence[pb.ModerateStreamRequest]] = {
    "before open": (),
    "opened": (opening(),),
    "tokens pending": (opening(), tokens(answer_ids(20))),
    "text pending": (opening(input=pb.INPUT_KIND_TEXT), text("Mix flour and water.")),
    "rollback pending": (opening(), tokens(answer_ids(20)), rollback(5), tokens(answer_ids(4, seed=1))),
    "user turn pending": (opening(), tokens(answer_ids(20)), user_turn("More?")),
    "finish with tokens pending": (opening(), tokens(answer_ids(20)), finish()),
    "refused with tokens pending": (opening(), tokens(answer_ids(20)), tokens([1], start_index=99)),
}


@pytest.mark.parametrize("requests", STATES.values(), ids=STATES.keys())
async def test_cancel_while_a_step_runs(
    server: RunningServer, bystander: Bystander, requests: Sequence[pb.ModerateStreamRequest]
) -> None:
    server.stream_gate.hold()
    num_steps = server.stream_gate.num_steps
    async with server.stream() as call:
        async with server.taking(len(requests)):
            await call.send(*requests)
        if requests:
            await server.stream_gate.arrival()
        else:
            await server.counts(num_sessions=2)
        call.cancel()
        await server.counts(num_sessions=1)
    server.stream_gate.release()
    await server.settled(num_sessions=1)
    assert server.stream_gate.num_steps - num_steps <= 1  # the one that was running


@pytest.mark.parametrize("requests", list(STATES.values())[1:], ids=list(STATES)[1:])
async def test_cancel_between_steps(
    server: RunningServer, bystander: Bystander, requests: Sequence[pb.ModerateStreamRequest]
) -> None:
    async with server.stream() as call:
        async with server.taking(len(requests)):
            await call.send(*requests)
        call.cancel()
        await server.settled(num_sessions=1)


async def test_cancel_after_a_rollback_is_done(server: RunningServer, bystander: Bystander) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(20)), rollback(5))
        await call.read_until("rolled_back")
        call.cancel()
        await server.settled(num_sessions=1)


@pytest.mark.parametrize(
    "requests",
    [STATES[state] for state in ("opened", "tokens pending", "rollback pending", "user turn pending")],
    ids=["opened", "tokens pending", "rollback pending", "user turn pending"],
)
async def test_half_close_without_finish_drops_what_is_pending(
    server: RunningServer, bystander: Bystander, requests: Sequence[pb.ModerateStreamRequest]
) -> None:
    server.stream_gate.hold()
    num_steps = server.stream_gate.num_steps
    async with server.stream() as call:
        async with server.taking(len(requests)):
            await call.send(*requests)
        await server.stream_gate.arrival()
        await call.half_close()
        failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.CANCELLED, "ABANDONED")
    assert "without `finish`" in failure.message
    assert call.received.verdicts == []
    server.stream_gate.release()
    await server.settled(num_sessions=1)
    assert server.stream_gate.num_steps - num_steps == 1


async def test_half_close_without_finish_when_all_is_judged(server: RunningServer, bystander: Bystander) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(5)))
        await call.read_verdicts(5)
        await call.half_close()
        failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.CANCELLED, "ABANDONED")
    assert call.received.summary is None


@pytest.mark.parametrize("is_held", [False, True])
async def test_deadline_in_mid_stream(server: RunningServer, bystander: Bystander, is_held: bool) -> None:
    async with server.stream(timeout_s=0.3) as call:
        await call.send(opening(), tokens(answer_ids(5)))
        if is_held:
            await call.read_until("opened")
            server.stream_gate.hold()
            await call.send(tokens(answer_ids(5)))
        failure = await call.failure()
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    await server.counts(num_sessions=1)


async def test_connection_that_is_closed(server: RunningServer, bystander: Bystander) -> None:
    channel = grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
    for _ in range(3):
        call = StreamCall(pb_grpc.ModerationServiceStub(channel).ModerateStream())
        await call.send(opening())
        await call.read_until("opened")
    await channel.close(None)
    await server.settled(num_sessions=1)


async def test_many_that_go_away_at_once(start_server: StartServer) -> None:
    server = await start_server(max_sessions=40)
    async with server.stream() as call:
        expected = (await call.run(opening(), tokens(answer_ids(30)))).verdicts
    calls = [server.stream() for _ in range(40)]
    for call in calls:
        await call.send(opening(), tokens(answer_ids(30)))
    for call in calls[::2]:
        call.cancel()
    stayed = await asyncio.gather(*(call.run() for call in calls[1::2]))
    for received in stayed:
        assert [verdict.risk_level for verdict in received.verdicts] == [verdict.risk_level for verdict in expected]
    await server.settled()
