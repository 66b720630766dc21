"""Classify calls that are refused, given up or too many; a stream beside them notices nothing."""

import asyncio
from typing import NamedTuple

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.answer import MAX_ANSWER_TOKENS
from tests.rpc.bystander import Bystander
from tests.rpc.messages import assistant, system, user
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.stream_call import WAIT_S, Failure

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


class Case(NamedTuple):
    request: pb.ClassifyRequest
    code: grpc.StatusCode
    reason: str
    field: str
    mention: str


def bad_messages(messages: list[pb.Message], reason: str, field: str, mention: str) -> Case:
    return Case(pb.ClassifyRequest(messages=messages), INVALID, reason, f"messages{field}", mention)


CASES = {
    "no messages": bad_messages([], "EMPTY_CONVERSATION", "", "must not be empty"),
    "system alone": bad_messages([system("Be kind")], "NOTHING_TO_JUDGE", "", "user's or the assistant's"),
    "too many messages": bad_messages(
        [user(), assistant("x")] * 4, "TOO_MANY_MESSAGES", "", "8 messages, the limit is 6"
    ),
    "assistant first": bad_messages([assistant("Hello")], "USER_FIRST", "[0].role", "user"),
    "system not first": bad_messages([user(), system("Be kind")], "SYSTEM_FIRST", "[1].role", "first"),
    "user after user": bad_messages([user(), user()], "ROLES_ALTERNATE", "[1].role", "assistant"),
    "no role": bad_messages([pb.Message(content="Hello")], "UNKNOWN_ENUM_VALUE", "[0].role", "ROLE_USER"),
    "empty message": bad_messages([user(), assistant("")], "EMPTY_CONTENT", "[1].content", "empty or blank"),
    "blank message": bad_messages([user(" ")], "EMPTY_CONTENT", "[0].content", "empty or blank"),
    "oversized message": bad_messages(
        [user("x" * 401)], "CONTENT_TOO_LARGE", "[0].content", "401 bytes, the limit is 400"
    ),
    "unknown model": Case(
        pb.ClassifyRequest(messages=[user()], model="tiny-stream"), NOT_FOUND, "UNKNOWN_MODEL", "model", "tiny-gen"
    ),
    "unknown policy": Case(
        pb.ClassifyRequest(messages=[user()], policy="lenient"), NOT_FOUND, "UNKNOWN_POLICY", "policy", "default"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_bad_request(server: RunningServer, bystander: Bystander, case: Case) -> None:
    num_steps = server.gen_gate.num_steps
    failure = await server.classify_failure(case.request)
    assert (failure.code, failure.reason, failure.field) == (case.code, case.reason, case.field)
    assert failure.message.startswith(f"{case.field}: ")
    assert case.mention in failure.message
    assert server.gen_gate.num_steps == num_steps


async def test_conversation_larger_than_the_context(server: RunningServer, bystander: Bystander) -> None:
    words = "żółć " * 40
    messages = [user(words), assistant(words), user(words), assistant(words), user(words)]
    failure = await server.classify_failure(pb.ClassifyRequest(messages=messages))
    assert (failure.code, failure.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_OVERFLOW")
    assert failure.field == "messages"
    assert f"the limit is {1024 - MAX_ANSWER_TOKENS}" in failure.message


async def test_more_calls_than_the_limit(server: RunningServer, bystander: Bystander) -> None:
    server.gen_gate.hold()
    request = pb.ClassifyRequest(messages=[user()])
    calls = [asyncio.ensure_future(server.stub.Classify(request, timeout=WAIT_S)) for _ in range(2)]
    await server.counts(num_sessions=1, num_calls=2)
    failure = await server.classify_failure(request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert "2 Classify calls wait already, the limit" in failure.message
    assert failure.retry_after_s == 0.5
    server.gen_gate.release()
    first, second = await asyncio.gather(*calls)
    again = await server.stub.Classify(request)
    assert first.answer == second.answer == again.answer


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_deadline_that_passes(server: RunningServer, bystander: Bystander, is_waiting: bool) -> None:
    server.gen_gate.hold()
    num_steps = server.gen_gate.num_steps
    request = pb.ClassifyRequest(messages=[user()])
    running = None
    if is_waiting:  # behind another call, whose step has begun
        running = asyncio.ensure_future(server.stub.Classify(request, timeout=WAIT_S))
        await server.gen_gate.arrival()
    failure = await server.classify_failure(request, timeout_s=0.3)
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    await server.counts(num_sessions=1, num_calls=1 if running else 0)
    server.gen_gate.release()
    if running:
        alone = (await running).usage.num_forward_passes
        assert server.gen_gate.num_steps - num_steps == alone
    await server.settled(num_sessions=1)
    if not running:
        assert server.gen_gate.num_steps - num_steps == 1


async def test_deadline_that_has_passed_already(server: RunningServer, bystander: Bystander) -> None:
    num_steps = server.gen_gate.num_steps
    failure = await server.classify_failure(pb.ClassifyRequest(messages=[user()]), timeout_s=0)
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    await server.settled(num_sessions=1)
    assert server.gen_gate.num_steps == num_steps


async def test_cancelled_call_costs_no_further_step(server: RunningServer, bystander: Bystander) -> None:
    server.gen_gate.hold()
    num_steps = server.gen_gate.num_steps
    call = server.stub.Classify(pb.ClassifyRequest(messages=[user()]))
    await server.gen_gate.arrival()
    call.cancel()
    await server.counts(num_sessions=1)
    server.gen_gate.release()
    await server.settled(num_sessions=1)
    assert server.gen_gate.num_steps - num_steps == 1


async def test_failing_step_fails_the_calls_of_that_step(server: RunningServer, bystander: Bystander) -> None:
    request = pb.ClassifyRequest(messages=[user()])
    server.gen_gate.fail()
    failure = await server.classify_failure(request)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
    assert failure.request_id
    assert failure.request_id in failure.message
    assert "fire" not in failure.message
    assert (await server.stub.Classify(request)).usage.num_forward_passes


async def test_lost_device(start_server: StartServer) -> None:
    server = await start_server()
    request = pb.ClassifyRequest(messages=[user()])
    server.gen_gate.fail(num_steps=3)
    failures = [await server.classify_failure(request) for _ in range(3)]
    failures.append(await server.classify_failure(request))
    assert [failure.code for failure in failures[:3]] == [grpc.StatusCode.INTERNAL] * 3
    lost: Failure = failures[3]
    assert (lost.code, lost.reason) == (grpc.StatusCode.UNAVAILABLE, "DEVICE_LOST")
    await server.counts()
