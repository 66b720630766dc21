"""Rollback and resumption: as if the tokens had never come, and as if the stream had never broken."""

import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.messages import answer_ids, finish, opening, rollback, tokens, user_turn
from tests.rpc.running_server import RunningServer
from tests.rpc.scripted_model import SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.rpc.stream_call import Received, TokenVerdict, assert_same_verdicts


async def run(server: RunningServer, *requests: pb.ModerateStreamRequest) -> Received:
    async with server.stream() as call:
        return await call.run(*requests)


@pytest.mark.parametrize("kept", [0, 7, 20])
@pytest.mark.parametrize("is_judged", [True, False])
async def test_rollback_equals_never_having_pushed(server: RunningServer, kept: int, is_judged: bool) -> None:
    dropped, replaced = answer_ids(20), answer_ids(10, seed=1)
    fresh = await run(server, opening(), tokens([*dropped[:kept], *replaced]))
    async with server.stream() as call:
        await call.send(opening(), tokens(dropped))
        if is_judged:
            await call.read_verdicts(20)
        received = await call.run(rollback(kept), tokens(replaced, start_index=kept))
    after = received.verdicts[20:] if is_judged else _after_rollback(received, kept)
    assert_same_verdicts(after, fresh.verdicts[kept:] if is_judged else fresh.verdicts)
    assert received.summary
    assert fresh.summary
    assert received.summary.num_tokens == kept + 10
    assert received.summary.num_safe_tokens == fresh.summary.num_safe_tokens
    assert received.summary.action == fresh.summary.action


def _after_rollback(received: Received, kept: int) -> list[TokenVerdict]:
    return [verdict for verdict in received.verdicts if verdict.index < kept][:kept] + received.verdicts[-10:]


async def test_rollback_while_the_tokens_are_in_a_step(server: RunningServer) -> None:
    fresh = await run(server, opening(), tokens([*answer_ids(20)[:5], *answer_ids(10, seed=1)]))
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("prompt_verdict")
        server.stream_gate.hold()
        await call.send(tokens(answer_ids(20)))
        await server.stream_gate.arrival()
        async with server.taking(3):
            await call.send(rollback(5), tokens(answer_ids(10, seed=1), start_index=5), finish())
        server.stream_gate.release()
        received = await call.read_all()
    assert received.kinds.index("rolled_back") < received.kinds.index("verdicts")
    assert_same_verdicts(received.verdicts, fresh.verdicts)  # the step's results beyond the fifth are gone


async def test_rollback_to_the_beginning_of_the_second_answer(server: RunningServer) -> None:
    first, second = answer_ids(8), answer_ids(6, seed=1)
    fresh = await run(server, opening(), tokens(first), user_turn("And then?"), tokens(second))
    received = await run(
        server,
        opening(),
        tokens(first),
        user_turn("And then?"),
        tokens(answer_ids(9, seed=2)),
        rollback(8),
        tokens(second, start_index=8),
    )
    assert_same_verdicts(received.verdicts[-6:], fresh.verdicts[-6:])
    assert len(received.prompt_verdicts) == 2


async def test_resumed_stream_sends_the_rest(server: RunningServer) -> None:
    ids = answer_ids(20)
    whole = await run(server, opening(), tokens(ids))
    resumed = await run(server, opening(resume_from=12), tokens(ids[:9], 0), tokens(ids[9:], 9))
    assert_same_verdicts(resumed.verdicts, whole.verdicts[12:])
    assert resumed.decisions == whole.decisions
    assert resumed.summary
    assert whole.summary
    assert resumed.summary.num_tokens == 20
    assert resumed.summary.num_unsafe_tokens == whole.summary.num_unsafe_tokens


async def test_resumed_stream_knows_what_was_before(server: RunningServer) -> None:
    server.stream_gate.substitute(ScriptedModel())
    resumed = await run(
        server, opening(resume_from=3), tokens([SAFE_ID, SAFE_ID, UNSAFE_ID]), tokens([UNSAFE_ID, SAFE_ID])
    )
    assert [verdict.index for verdict in resumed.verdicts] == [3, 4]
    (decision,) = resumed.decisions
    assert (decision.token_index, decision.cut_index) == (3, 2)


async def test_exact_repeat_on_a_resumed_stream_is_skipped(server: RunningServer) -> None:
    ids = answer_ids(20)
    whole = await run(server, opening(), tokens(ids))
    resumed = await run(server, opening(resume_from=5), tokens(ids[:12], 0), tokens(ids[4:12], 4), tokens(ids[12:], 12))
    assert_same_verdicts(resumed.verdicts, whole.verdicts[5:])


async def test_other_overlap_on_a_resumed_stream_is_refused(server: RunningServer) -> None:
    ids = answer_ids(20)
    async with server.stream() as call:
        await call.send(opening(resume_from=5), tokens(ids[:12], 0), tokens(ids[5:12], 4))
        failure = await call.failure()
    assert (failure.reason, failure.field) == ("START_INDEX_MISMATCH", "tokens.start_index")
    assert [verdict.index for verdict in call.received.verdicts] == list(range(5, 12))


async def test_resumption_beyond_the_end_tells_the_summary_alone(server: RunningServer) -> None:
    received = await run(server, opening(resume_from=2**64 - 1), tokens(answer_ids(5)))
    assert received.verdicts == []
    assert received.summary
    assert received.summary.num_tokens == 5
