"""Messages that an open stream refuses: what was pushed before is judged first, and nobody else notices."""

from typing import NamedTuple

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from tests.rpc.bystander import Bystander
from tests.rpc.messages import (
    answer_ids,
    finish,
    opening,
    rollback,
    templated_opening,
    text,
    tokens,
    user_tokens,
    user_turn,
)
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import StreamCall

INVALID = grpc.StatusCode.INVALID_ARGUMENT
OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE
WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION
NUM_PUSHED = 5


class Case(NamedTuple):
    request: pb.ModerateStreamRequest
    code: grpc.StatusCode
    reason: str
    field: str
    mention: str


CASES = {
    "second open": Case(opening(), WRONG_STATE, "ALREADY_OPEN", "open", "open already"),
    "empty request": Case(pb.ModerateStreamRequest(), INVALID, "EMPTY_REQUEST", "request", "one of open, tokens"),
    "id at the vocabulary's end": Case(
        tokens([1, 448]),
        INVALID,
        "TOKEN_ID_BEYOND_VOCABULARY",
        "tokens.token_ids[1]",
        "ids must be below 448",
    ),
    "first id beyond the vocabulary": Case(
        tokens([448]), INVALID, "TOKEN_ID_BEYOND_VOCABULARY", "tokens.token_ids[0]", "below 448"
    ),
    "largest id": Case(tokens([2**32 - 1]), INVALID, "TOKEN_ID_BEYOND_VOCABULARY", "tokens.token_ids[0]", "below 448"),
    "too many ids": Case(
        tokens(answer_ids(33)), INVALID, "TOO_MANY_TOKENS", "tokens.token_ids", "33 ids in one message, the limit is 32"
    ),
    "gap": Case(
        tokens([1], start_index=6), OUT_OF_RANGE, "START_INDEX_MISMATCH", "tokens.start_index", "6 is a gap: 5"
    ),
    "overlap": Case(
        tokens([1], start_index=4), OUT_OF_RANGE, "START_INDEX_MISMATCH", "tokens.start_index", "4 is an overlap: 5"
    ),
    "repeat on a stream that was not resumed": Case(
        tokens(answer_ids(NUM_PUSHED), start_index=0),
        OUT_OF_RANGE,
        "START_INDEX_MISMATCH",
        "tokens.start_index",
        "0 is an overlap: 5",
    ),
    "largest start index": Case(
        tokens([], start_index=2**64 - 1), OUT_OF_RANGE, "START_INDEX_MISMATCH", "tokens.start_index", "gap"
    ),
    "rollback beyond the end": Case(
        rollback(6), OUT_OF_RANGE, "ROLLBACK_OUT_OF_RANGE", "rollback.num_tokens_kept", "6 is beyond the end"
    ),
    "largest rollback": Case(
        rollback(2**64 - 1), OUT_OF_RANGE, "ROLLBACK_OUT_OF_RANGE", "rollback.num_tokens_kept", "allows 0 to 5"
    ),
    "text on a token stream": Case(text("Hello"), WRONG_STATE, "WRONG_INPUT_KIND", "text", "tokens"),
    "user turn without content": Case(
        pb.ModerateStreamRequest(user_turn=pb.UserTurn()), INVALID, "CONTENT_REQUIRED", "user_turn.turn", "content"
    ),
    "empty user turn": Case(user_turn(""), INVALID, "EMPTY_CONTENT", "user_turn.content", "empty or blank"),
    "blank user turn": Case(user_turn(" \n"), INVALID, "EMPTY_CONTENT", "user_turn.content", "empty or blank"),
    "oversized user turn": Case(
        user_turn("x" * 401), INVALID, "CONTENT_TOO_LARGE", "user_turn.content", "401 bytes, the limit is 400"
    ),
    "user turn of no tokens": Case(
        user_tokens([]), INVALID, "EMPTY_CONTENT", "user_turn.tokens.token_ids", "must not be empty"
    ),
    "user turn of too many tokens": Case(
        user_tokens(answer_ids(33)), INVALID, "TOO_MANY_TOKENS", "user_turn.tokens.token_ids", "the limit is 32"
    ),
    "user turn beyond the vocabulary": Case(
        user_tokens([448]), INVALID, "TOKEN_ID_BEYOND_VOCABULARY", "user_turn.tokens.token_ids[0]", "below 448"
    ),
}


async def assert_refused(call: StreamCall, case: Case, num_verdicts: int) -> None:
    failure = await call.failure()
    assert [verdict.index for verdict in call.received.verdicts] == list(range(num_verdicts))
    assert call.received.summary is None
    assert (failure.code, failure.reason, failure.field) == (case.code, case.reason, case.field)
    assert failure.message.startswith(f"{case.field}: ")
    assert case.mention in failure.message


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_bad_message(server: RunningServer, bystander: Bystander, case: Case) -> None:
    server.stream_gate.hold()  # so that the tokens are pending when the bad message comes
    async with server.stream() as call:
        async with server.taking(3):
            await call.send(opening(), tokens(answer_ids(NUM_PUSHED)), case.request)
        server.stream_gate.release()
        await assert_refused(call, case, NUM_PUSHED)


async def test_messages_after_a_bad_one_change_nothing(server: RunningServer, bystander: Bystander) -> None:
    case = CASES["gap"]
    server.stream_gate.hold()
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(NUM_PUSHED)), case.request)
        await call.send(tokens(answer_ids(3)), rollback(1), rollback(9), user_turn("More?"), finish())
        await server.stream_gate.arrival()
        server.stream_gate.release()
        await assert_refused(call, case, NUM_PUSHED)
    assert call.received.rolled_back == []


async def test_rollback_into_an_earlier_turn(server: RunningServer, bystander: Bystander) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(NUM_PUSHED)), user_turn("And salt?"), rollback(4))
        case = Case(
            rollback(4), OUT_OF_RANGE, "ROLLBACK_OUT_OF_RANGE", "rollback.num_tokens_kept", "4 is into the prompt"
        )
        await assert_refused(call, case, NUM_PUSHED)
    assert [verdict.turn for verdict in call.received.prompt_verdicts] == [0, 1]


@pytest.mark.parametrize("control", ["<|im_start|>", "<|im_end|>"])
async def test_user_tokens_that_open_or_close_a_turn(server: RunningServer, bystander: Bystander, control: str) -> None:
    assert server.models.stream
    control_id = server.models.stream.tokenizer.added_tokens[control]
    async with server.stream() as call:
        await call.send(opening(), tokens(answer_ids(NUM_PUSHED)), user_tokens([7, control_id]))
        case = Case(opening(), INVALID, "CONTROL_TOKEN", "user_turn.tokens.token_ids[1]", "must not open or close")
        await assert_refused(call, case, NUM_PUSHED)


async def test_tokens_on_a_text_stream(server: RunningServer, bystander: Bystander) -> None:
    async with server.stream() as call:
        await call.send(opening(input=pb.INPUT_KIND_TEXT), text("Mix flour and water", flush=True))
        num_verdicts = len(encode(server, "Mix flour and water"))
        await call.send(tokens([1]))
        await assert_refused(
            call, Case(tokens([1]), WRONG_STATE, "WRONG_INPUT_KIND", "tokens", "opened for text"), num_verdicts
        )


async def test_oversized_text(server: RunningServer, bystander: Bystander) -> None:
    async with server.stream() as call:
        await call.send(opening(input=pb.INPUT_KIND_TEXT), text("ü" * 201))
        case = Case(text(""), INVALID, "CONTENT_TOO_LARGE", "text.text", "402 bytes, the limit is 400")
        await assert_refused(call, case, 0)


@pytest.mark.parametrize("overflow", ["tokens", "user_turn", "text"])
async def test_context_overflow(server: RunningServer, bystander: Bystander, overflow: str) -> None:
    assert server.models.stream
    prompt = server.models.stream.tokenizer.encode_template("<|im_start|>user\nHi<|im_end|>\n")
    filling = [*prompt, *answer_ids(1024 - len(prompt) - NUM_PUSHED)]
    request, field = {
        "tokens": (tokens([1]), "tokens.token_ids"),
        "user_turn": (user_turn("More?"), "user_turn.content"),
        "text": (text("x", flush=True), "text.text"),
    }[overflow]
    async with server.stream() as call:
        if overflow == "text":
            await call.send(templated_opening(filling, input=pb.INPUT_KIND_TEXT), text("\u0000" * 5, flush=True))
        else:
            await call.send(templated_opening(filling), tokens(answer_ids(NUM_PUSHED)))
        await call.send(request)
        await assert_refused(
            call, Case(request, OUT_OF_RANGE, "CONTEXT_OVERFLOW", field, "the context holds 1024"), NUM_PUSHED
        )
    assert call.received.opened
    assert call.received.opened.num_tokens_left == NUM_PUSHED


async def test_rollback_makes_room_again(server: RunningServer, bystander: Bystander) -> None:
    assert server.models.stream
    prompt = server.models.stream.tokenizer.encode_template("<|im_start|>user\nHi<|im_end|>\n")
    filling = [*prompt, *answer_ids(1024 - len(prompt) - NUM_PUSHED)]
    async with server.stream() as call:
        received = await call.run(
            templated_opening(filling), tokens(answer_ids(NUM_PUSHED)), rollback(2), tokens(answer_ids(3, seed=1))
        )
    assert received.summary
    assert received.summary.num_tokens == NUM_PUSHED


def encode(server: RunningServer, content: str) -> list[int]:
    assert server.models.stream
    return server.models.stream.tokenizer.encode_plain(content)
