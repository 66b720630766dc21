"""Openings that are refused: each with its own status, reason, field and limit, and nobody else notices."""

from typing import Any, NamedTuple

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.bystander import Bystander
from tests.rpc.messages import answer_ids, assistant, opening, system, templated_opening, tokens, user
from tests.rpc.running_server import RunningServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN_ENUM_VALUE = 99


class Case(NamedTuple):
    request: pb.ModerateStreamRequest
    code: grpc.StatusCode
    reason: str
    field: str
    mention: str


def bad_messages(messages: list[pb.Message], reason: str, field: str, mention: str) -> Case:
    return Case(opening(messages), INVALID, reason, f"open.conversation.messages{field}", mention)


def bad_option(name: str, value: object, code: grpc.StatusCode, reason: str, mention: str) -> Case:
    options: dict[str, Any] = {name: value}
    return Case(opening(**options), code, reason, f"open.{name}", mention)


def bad_enum(name: str, mention: str) -> Case:
    return bad_option(name, UNKNOWN_ENUM_VALUE, INVALID, "UNKNOWN_ENUM_VALUE", mention)


CASES = {
    "no prompt": Case(
        pb.ModerateStreamRequest(open=pb.StreamOpen()), INVALID, "PROMPT_REQUIRED", "open.prompt", "conversation"
    ),
    "empty conversation": bad_messages([], "EMPTY_CONVERSATION", "", "must not be empty"),
    "too many messages": bad_messages([user(), assistant("x")] * 3 + [user()], "TOO_MANY_MESSAGES", "", "limit is 6"),
    "assistant first": bad_messages([assistant("Hello"), user()], "USER_FIRST", "[0].role", "user"),
    "assistant after system": bad_messages(
        [system("Be kind"), assistant("Hello"), user()], "USER_FIRST", "[1].role", "user"
    ),
    "system not first": bad_messages([user(), system("Be kind"), user()], "SYSTEM_FIRST", "[1].role", "first"),
    "system alone": bad_messages([system("Be kind")], "USER_LAST", "", "user's"),
    "assistant last": bad_messages([user(), assistant("Yes")], "USER_LAST", "", "user's"),
    "user after user": bad_messages([user(), user()], "ROLES_ALTERNATE", "[1].role", "assistant"),
    "assistant after assistant": bad_messages(
        [user(), assistant("Yes"), assistant("No"), user()], "ROLES_ALTERNATE", "[2].role", "user"
    ),
    "no role": bad_messages(
        [pb.Message(content="Hello")], "UNKNOWN_ENUM_VALUE", "[0].role", "ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT"
    ),
    "unknown role": bad_messages(
        [pb.Message(role=UNKNOWN_ENUM_VALUE, content="Hello")],  # type: ignore[arg-type]
        "UNKNOWN_ENUM_VALUE",
        "[0].role",
        "99",
    ),
    "empty message": bad_messages([user("")], "EMPTY_CONTENT", "[0].content", "empty or blank"),
    "blank message": bad_messages([user(" \n\t\u2003")], "EMPTY_CONTENT", "[0].content", "empty or blank"),
    "blank system message": bad_messages([system(" "), user()], "EMPTY_CONTENT", "[0].content", "empty or blank"),
    "oversized message": bad_messages(
        [user("ü" * 201)], "CONTENT_TOO_LARGE", "[0].content", "402 bytes, the limit is 400"
    ),
    "unknown model": bad_option("model", "other", grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL", "tiny-stream"),
    "unknown policy": bad_option(
        "policy", "lenient", grpc.StatusCode.NOT_FOUND, "UNKNOWN_POLICY", "default, strict, observe"
    ),
    "foreign tokenizer": bad_option(
        "tokenizer_fingerprint", "00ff", grpc.StatusCode.FAILED_PRECONDITION, "FOREIGN_TOKENIZER", "GetTokenizer"
    ),
    "unknown thinking": bad_enum("thinking", "THINKING_OFF, THINKING_ON"),
    "unknown input": bad_enum("input", "INPUT_KIND_TOKENS, INPUT_KIND_TEXT"),
    "unknown update mode": bad_enum("update_mode", "UPDATE_MODE_EVERY_TOKEN, UPDATE_MODE_ON_CHANGE"),
    "unknown context overflow": bad_enum("context_overflow", "CONTEXT_OVERFLOW_FAIL, CONTEXT_OVERFLOW_SLIDE"),
    "templated without a user": Case(
        templated_opening(answer_ids(30)), INVALID, "NO_USER_TURN", "open.templated.token_ids", "<|im_end|>"
    ),
    "templated and empty": Case(
        templated_opening([]), INVALID, "NO_USER_TURN", "open.templated.token_ids", "<|im_end|>"
    ),
    "templated beyond the vocabulary": Case(
        templated_opening([1, 2, 1_000_000]),
        INVALID,
        "TOKEN_ID_BEYOND_VOCABULARY",
        "open.templated.token_ids[2]",
        "below 448",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_bad_opening(server: RunningServer, bystander: Bystander, case: Case) -> None:
    async with server.stream() as call:
        await call.send(case.request)
        failure = await call.failure()
    assert (failure.code, failure.reason, failure.field) == (case.code, case.reason, case.field)
    assert failure.message.startswith(f"{case.field}: ")
    assert case.mention in failure.message
    assert call.received.kinds == []


async def test_limits_are_inclusive(server: RunningServer, bystander: Bystander) -> None:
    largest = "ü" * 200
    async with server.stream() as call:
        received = await call.run(opening([user(largest), assistant("x"), user(), assistant("y"), user()]))
    assert received.summary
    async with server.stream() as call:
        received = await call.run(opening(), tokens(answer_ids(32)))
    assert len(received.verdicts) == 32


async def test_names_that_exist(server: RunningServer, bystander: Bystander) -> None:
    info = await server.info()
    (model,) = [model for model in info.models if model.kind == pb.MODEL_KIND_STREAM]
    for policy in info.policies:
        request = opening(model=model.name, policy=policy.name, tokenizer_fingerprint=model.tokenizer_fingerprint)
        async with server.stream() as call:
            received = await call.run(request)
        assert received.opened
        assert (received.opened.model, received.opened.policy) == (model.name, policy.name)


@pytest.mark.parametrize("is_templated", [False, True])
async def test_prompt_larger_than_the_context(server: RunningServer, bystander: Bystander, is_templated: bool) -> None:
    words = user("żółć " * 40)
    request = opening([words, words, words][:1] + [assistant("x" * 390), words] * 2)
    field = "open.conversation"
    if is_templated:
        assert server.models.stream
        encoding = server.models.stream.tokenizer.encode_template("<|im_start|>user\nHi<|im_end|>\n")
        request, field = templated_opening(encoding + [7] * 1024), "open.templated.token_ids"
    async with server.stream() as call:
        await call.send(request)
        failure = await call.failure()
    assert (failure.code, failure.reason, failure.field) == (grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_OVERFLOW", field)
    assert "the context holds 1024" in failure.message
