"""Decisions over the wire: when they are told, what they enforce, and what a rollback or a new turn makes of them."""

from collections.abc import Sequence

import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.verdict import RiskLevel
from tests.rpc.messages import finish, opening, rollback, tokens, user_turn
from tests.rpc.running_server import RunningServer
from tests.rpc.scripted_model import CONTROVERSIAL_ID, SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.rpc.stream_call import Received

SAFE, CONTROVERSIAL, UNSAFE = [SAFE_ID], [CONTROVERSIAL_ID], [UNSAFE_ID]


@pytest.fixture
def scripted(server: RunningServer) -> RunningServer:
    server.stream_gate.substitute(ScriptedModel())
    return server


async def run(server: RunningServer, *requests: pb.ModerateStreamRequest) -> Received:
    async with server.stream() as call:
        return await call.run(*requests)


def told(received: Received) -> Sequence[tuple[int, int, int, int]]:
    """Each decision's action, turn, token index and cut index."""
    return [
        (decision.action, decision.turn, decision.token_index, decision.cut_index) for decision in received.decisions
    ]


async def test_block(scripted: RunningServer) -> None:
    received = await run(scripted, opening(), tokens(SAFE * 3 + UNSAFE * 2 + SAFE))
    (decision,) = received.decisions
    assert told(received) == [(pb.ACTION_BLOCK, 0, 4, 3)]
    assert (decision.role, decision.risk_level) == (pb.ROLE_ASSISTANT, pb.RISK_LEVEL_UNSAFE)
    assert (decision.category, decision.reason) == (pb.CATEGORY_VIOLENT, pb.DECISION_REASON_VERDICT)
    assert decision.enforced
    assert not decision.HasField("cut_text_offset")
    assert "policy 'default' says BLOCK" in decision.explanation
    assert len(received.verdicts) == 6
    assert received.summary
    assert (received.summary.end_reason, received.summary.action) == (pb.END_REASON_FINISHED, pb.ACTION_BLOCK)
    assert (received.summary.risk_level, received.summary.category) == (pb.RISK_LEVEL_UNSAFE, pb.CATEGORY_VIOLENT)


async def test_decision_comes_behind_its_verdict(scripted: RunningServer) -> None:
    async with scripted.stream() as call:
        await call.send(opening(), tokens(SAFE + UNSAFE), tokens(UNSAFE), tokens(SAFE), finish())
        await call.read_until("decision")
        assert call.received.verdicts[-1].index >= 2
        await call.read_all()


async def test_single_risky_token_is_no_decision(scripted: RunningServer) -> None:
    received = await run(scripted, opening(), tokens(SAFE + UNSAFE + SAFE + UNSAFE + CONTROVERSIAL + UNSAFE))
    assert received.decisions == []
    assert received.summary
    assert (received.summary.risk_level, received.summary.action) == (pb.RISK_LEVEL_SAFE, pb.ACTION_ALLOW)


async def test_strict_policy_blocks_controversial(scripted: RunningServer) -> None:
    ids = tokens(SAFE + CONTROVERSIAL * 2)
    assert told(await run(scripted, opening(policy="strict"), ids)) == [(pb.ACTION_BLOCK, 0, 2, 1)]
    assert told(await run(scripted, opening(), ids)) == []


async def test_observing_policy_rises_from_flag_to_block(scripted: RunningServer) -> None:
    received = await run(scripted, opening(policy="observe", end_on_block=True), tokens(CONTROVERSIAL * 2 + UNSAFE * 2))
    assert told(received) == [(pb.ACTION_FLAG, 0, 1, 0), (pb.ACTION_BLOCK, 0, 3, 2)]
    assert [decision.enforced for decision in received.decisions] == [False, False]
    assert received.summary
    assert received.summary.end_reason == pb.END_REASON_FINISHED


async def test_end_on_block(scripted: RunningServer) -> None:
    async with scripted.stream() as call:
        await call.send(opening(end_on_block=True), tokens(SAFE + UNSAFE * 2 + SAFE * 5), tokens(SAFE * 9))
        received = await call.read_all()  # without `finish`
    assert told(received) == [(pb.ACTION_BLOCK, 0, 2, 1)]
    assert received.summary
    assert received.kinds[-2:] == ["decision", "summary"]
    assert (received.summary.end_reason, received.summary.action) == (pb.END_REASON_BLOCKED, pb.ACTION_BLOCK)
    await scripted.settled()


async def test_observe_only_does_not_end_on_block(scripted: RunningServer) -> None:
    received = await run(
        scripted, opening(end_on_block=True, observe_only=True), tokens(UNSAFE * 2), tokens(SAFE, start_index=2)
    )
    assert told(received) == [(pb.ACTION_BLOCK, 0, 1, 0)]
    assert not received.decisions[0].enforced
    assert len(received.verdicts) == 3
    assert received.summary
    assert received.summary.end_reason == pb.END_REASON_FINISHED


async def test_unsafe_prompt(server: RunningServer) -> None:
    server.stream_gate.substitute(ScriptedModel(RiskLevel.UNSAFE, RiskLevel.UNSAFE))
    flagged = await run(server, opening(end_on_block=True), tokens(SAFE))
    (decision,) = flagged.decisions
    assert (decision.role, decision.action) == (pb.ROLE_USER, pb.ACTION_FLAG)
    assert (decision.token_index, decision.cut_index) == (0, 0)
    assert flagged.kinds[:3] == ["opened", "prompt_verdict", "decision"]
    assert flagged.summary
    assert (flagged.summary.action, flagged.summary.end_reason) == (pb.ACTION_FLAG, pb.END_REASON_FINISHED)
    async with server.stream() as call:
        await call.send(opening(policy="strict", end_on_block=True))
        blocked = await call.read_all()
    assert blocked.kinds == ["opened", "prompt_verdict", "decision", "summary"]
    assert blocked.summary
    assert blocked.summary.end_reason == pb.END_REASON_BLOCKED


async def test_next_turn_begins_anew(server: RunningServer) -> None:
    server.stream_gate.substitute(ScriptedModel(RiskLevel.SAFE, RiskLevel.UNSAFE))
    received = await run(
        server, opening(), tokens(UNSAFE * 2), user_turn("And then?"), tokens(UNSAFE + SAFE + UNSAFE * 2)
    )
    assert told(received) == [(pb.ACTION_BLOCK, 0, 1, 0), (pb.ACTION_FLAG, 1, 2, 2), (pb.ACTION_BLOCK, 1, 5, 4)]
    assert [decision.role for decision in received.decisions] == [pb.ROLE_ASSISTANT, pb.ROLE_USER, pb.ROLE_ASSISTANT]


async def test_on_change(scripted: RunningServer) -> None:
    ids = SAFE * 3 + UNSAFE + SAFE * 2 + CONTROVERSIAL * 4
    async with scripted.stream() as call:
        await call.send(opening(update_mode=pb.UPDATE_MODE_ON_CHANGE))
        for token_id in ids:
            await call.send(tokens([token_id]))
        await call.send(rollback(8), tokens(CONTROVERSIAL * 2), user_turn("And then?"))
        received = await call.run(tokens(CONTROVERSIAL))
    assert [verdict.index for verdict in received.verdicts] == [0, 3, 4, 6, 8, 10]
    assert received.summary
    assert received.summary.num_tokens == 11


async def test_rollback_takes_a_decision_back(scripted: RunningServer) -> None:
    async with scripted.stream() as call:
        await call.send(opening(), tokens(SAFE + UNSAFE * 2))
        await call.read_until("decision")
        await call.send(rollback(2))
        await call.read_until("rolled_back")
        received = await call.run(tokens(SAFE + UNSAFE * 2, start_index=2))
    (rolled_back,) = received.rolled_back
    assert (rolled_back.num_tokens_kept, rolled_back.action) == (2, pb.ACTION_ALLOW)
    assert told(received) == [(pb.ACTION_BLOCK, 0, 2, 1), (pb.ACTION_BLOCK, 0, 4, 3)]
    assert received.summary
    assert received.summary.num_unsafe_tokens == 3


async def test_rollback_keeps_a_decision_that_fell_before(scripted: RunningServer) -> None:
    async with scripted.stream() as call:
        await call.send(opening(), tokens(UNSAFE * 2 + SAFE * 4))
        await call.read_verdicts(6)
        received = await call.run(rollback(2))
    (rolled_back,) = received.rolled_back
    assert (rolled_back.num_tokens_kept, rolled_back.action) == (2, pb.ACTION_BLOCK)
    assert len(received.decisions) == 1
    assert received.summary
    assert received.summary.action == pb.ACTION_BLOCK
