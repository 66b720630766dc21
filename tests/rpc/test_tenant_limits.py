"""A tenant at its limits is refused, and another one beside it notices nothing."""

import asyncio

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.limited import FULL, NEXT_TO_NOTHING, Limited, assert_too_fast, opened
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import (
    answer_ids,
    finish,
    opening,
    tokens,
    user,
)
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import WAIT_S, Failure


async def refusal(server: RunningServer) -> Failure:
    """How a new stream is refused."""
    async with server.stream() as call:
        return await call.failure()


# --- streams and calls -----------------------------------------------------------------------------------------------


async def test_streams_beyond_the_limit(limited: Limited) -> None:
    acme = await limited.start(max_streams=2)
    async with await opened(acme) as one, ManyCall(acme) as many:
        await many.send((7, opening()))
        await many.read_until(many.has_judged_prompts(7))
        failure = await refusal(acme)
        assert (failure.code, failure.reason, failure.retry_after_s) == (FULL, "TENANT_STREAMS", 1.0)
        assert "2 streams open, its limit is 2" in failure.message
        await many.send((8, opening()), (7, tokens(answer_ids(3))))
        await many.read_until(lambda: 8 in many.errors)
        assert (many.errors[8].code, many.errors[8].reason) == (FULL.value[0], "TENANT_STREAMS")
        assert many.errors[8].retry_delay.ToTimedelta().total_seconds() == 1.0
        async with await opened(limited.beta) as other:  # which has room still
            assert (await other.run(tokens(answer_ids(3)))).summary
        await many.send((7, finish()))
        await many.read_until(many.has_ended(7))
        await many.send((9, opening()), (9, finish()))  # in the place of the one that has ended
        await many.read_until(many.has_ended(9))
        assert many.summary(9)
        assert (await one.run(tokens(answer_ids(3)))).summary


@pytest.mark.parametrize("end", ["finish", "cancel", "half_close", "bad message", "deadline", "many", "refused open"])
async def test_places_are_given_back(limited: Limited, end: str) -> None:
    acme = await limited.start(max_streams=1)
    for _ in range(2):
        if end == "many":
            async with ManyCall(acme) as many:
                await many.send((1, opening()), (2, opening()))
                await many.read_until(many.has_judged_prompts(1))
        elif end == "refused open":
            async with acme.stream() as call:
                await call.send(opening(policy="unknown"))
                assert (await call.failure()).reason == "UNKNOWN_POLICY"
        else:
            async with acme.stream(timeout_s=0.2 if end == "deadline" else None) as call:
                await call.send(opening())
                if end == "finish":
                    assert (await call.run()).summary
                elif end == "half_close":
                    await call.half_close()
                    assert (await call.failure()).code is grpc.StatusCode.CANCELLED
                elif end == "bad message":
                    await call.send(tokens([2**31]))
                    await call.failure()
                elif end == "deadline":
                    assert (await call.failure()).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await limited.beta.settled(num_sessions=1)
    async with await opened(acme) as call:
        assert (await call.run()).summary


async def test_a_server_that_is_full_gives_the_tenants_place_back(limited: Limited) -> None:
    acme = await limited.start(max_streams=3, settings={"max_sessions": 2})
    async with await opened(acme):
        for _ in range(4):
            assert (await refusal(acme)).reason == "TOO_MANY_SESSIONS"
        async with ManyCall(acme) as many:
            await many.send(*((number, opening()) for number in range(4)))
            await many.read_until(many.has_ended(0, 1, 2, 3))
            assert {error.reason for error in many.errors.values()} == {"TOO_MANY_SESSIONS"}


async def test_classify_calls_beyond_the_limit(limited: Limited) -> None:
    acme = await limited.start(max_classify_calls=1)
    request = pb.ClassifyRequest(messages=[user()])
    limited.server.gen_gate.hold()
    waiting = asyncio.ensure_future(acme.stub.Classify(request, timeout=WAIT_S))
    await limited.beta.counts(num_sessions=1, num_calls=1)
    failure = await acme.classify_failure(request)
    assert (failure.code, failure.reason, failure.retry_after_s) == (FULL, "TENANT_CALLS", 0.5)
    other = asyncio.ensure_future(limited.beta.stub.Classify(request, timeout=WAIT_S))
    await limited.beta.counts(num_sessions=1, num_calls=2)
    limited.server.gen_gate.release()
    assert (await waiting).model == (await other).model == "tiny-gen"
    limited.server.gen_gate.hold()
    abandoned = asyncio.ensure_future(acme.stub.Classify(request, timeout=WAIT_S))
    await limited.beta.counts(num_sessions=1, num_calls=1)
    abandoned.cancel()
    await limited.beta.counts(num_sessions=1)
    limited.server.gen_gate.release()
    assert (await acme.stub.Classify(request, timeout=WAIT_S)).model == "tiny-gen"


# --- sizes, and changes ----------------------------------------------------------------------------------------------


async def test_sizes_of_messages(limited: Limited) -> None:
    acme = await limited.start(max_message_bytes=50, max_tokens_per_message=1000)
    async with acme.stream() as call:
        await call.send(opening([user("x" * 51)]))
        failure = await call.failure()
    assert (failure.reason, failure.field) == ("CONTENT_TOO_LARGE", "open.conversation.messages[0].content")
    assert "51 bytes, the limit is 50" in failure.message
    failure = await acme.classify_failure(pb.ClassifyRequest(messages=[user("x" * 51)]))
    assert "51 bytes, the limit is 50" in failure.message
    async with ManyCall(acme) as many:
        await many.send((1, opening([user("x" * 51)])), (2, opening()), (2, tokens(answer_ids(33))))
        await many.read_until(many.has_ended(1, 2))
    assert many.errors[1].reason == "CONTENT_TOO_LARGE"
    assert "33 ids in one message, the limit is 32" in many.errors[2].message  # the server's, which is narrower
    async with limited.beta.stream() as call:
        assert (await call.run(opening([user("x" * 51)]))).summary


async def test_callers_are_told_their_own_limits(limited: Limited) -> None:
    acme = await limited.start(max_streams=3, max_classify_calls=1, max_message_bytes=50, max_tokens_per_message=64)
    limits, others = (await acme.info()).limits, (await limited.beta.info()).limits
    assert (limits.max_sessions, limits.max_classify_calls) == (3, 1)
    assert (limits.max_message_bytes, limits.max_tokens_per_message) == (50, 32)
    assert (others.max_sessions, others.max_classify_calls, others.max_message_bytes) == (6, 2, 400)
    async with await opened(acme) as call:
        assert call.received.opened
        assert call.received.opened.limits == limits
        assert (await call.run()).summary


async def test_new_limits_meet_the_streams_that_are_open(limited: Limited) -> None:
    acme = await limited.start(max_streams=2)
    async with await opened(acme) as one, await opened(acme) as other:
        await limited.change(max_streams=1)
        failure = await refusal(acme)
        assert "2 streams open, its limit is 1" in failure.message
        assert (await one.run(tokens(answer_ids(3)))).summary
        assert (await refusal(acme)).reason == "TENANT_STREAMS"
        await limited.change(max_streams=3, tokens_per_s=NEXT_TO_NOTHING, burst_tokens=10)
        await other.send(tokens(answer_ids(10)), tokens(answer_ids(1)))  # which is metered from now on
        assert_too_fast(await other.failure(), 1)
        assert len(other.received.verdicts) == 10
