"""Streams of text: the ids are those of the whole text however it comes, and offsets count its bytes."""

import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.model.tokens import Tokenizer
from tests.rpc.messages import finish, opening, rollback, text, tokens, user_turn
from tests.rpc.running_server import RunningServer
from tests.rpc.scripted_model import ScriptedModel
from tests.rpc.stream_call import Received, assert_same_verdicts

TEXT = "Żółta łódź płynie: 你好, mix 12 eggs\n\n and flour — then  bake. 안녕"
TEXT_OPENING = opening(input=pb.INPUT_KIND_TEXT)


@pytest.fixture
def tokenizer(server: RunningServer) -> Tokenizer:
    assert server.models.stream
    return server.models.stream.tokenizer


async def run(server: RunningServer, *requests: pb.ModerateStreamRequest) -> Received:
    async with server.stream() as call:
        return await call.run(*requests)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
async def test_text_equals_its_tokens(server: RunningServer, tokenizer: Tokenizer, chunk_size: int) -> None:
    ids = tokenizer.encode_plain(TEXT)
    by_ids = await run(server, opening(), *(tokens(ids[start : start + 32]) for start in range(0, len(ids), 32)))
    pieces = [TEXT[start : start + chunk_size] for start in range(0, len(TEXT), chunk_size)]
    by_text = await run(server, TEXT_OPENING, *map(text, pieces))
    assert_same_verdicts(by_text.verdicts, by_ids.verdicts)
    offsets = [verdict.text_end_offset for verdict in by_text.verdicts]
    assert offsets == sorted(offset for offset in offsets if offset is not None)
    assert offsets[-1] == len(TEXT.encode())
    for offset in offsets:
        assert offset is not None
        TEXT.encode()[:offset].decode()  # never inside a character


async def test_newest_word_is_held_back(server: RunningServer, tokenizer: Tokenizer) -> None:
    async with server.stream() as call:
        await call.send(TEXT_OPENING, text("Mix flour and wat"))
        held = tokenizer.encode_plain("Mix flour and")
        await call.read_verdicts(len(held))
        assert call.received.verdicts[-1].text_end_offset == len("Mix flour and")
        received = await call.run(text("er"))
    assert len(received.verdicts) == len(tokenizer.encode_plain("Mix flour and water"))
    assert received.verdicts[-1].text_end_offset == len("Mix flour and water")


async def test_flush_judges_the_newest_word(server: RunningServer, tokenizer: Tokenizer) -> None:
    async with server.stream() as call:
        await call.send(TEXT_OPENING, text("Mix flour", flush=True))
        num_tokens = len(tokenizer.encode_plain("Mix flour"))
        await call.read_verdicts(num_tokens)
        await call.send(text("", flush=True), text(""))  # nothing is held: nothing follows
        received = await call.run(text(" and water"))
    assert len(received.verdicts) == num_tokens + len(tokenizer.encode_plain(" and water"))
    assert received.verdicts[-1].text_end_offset == len("Mix flour and water")


async def test_control_tokens_in_text_are_text(server: RunningServer, tokenizer: Tokenizer) -> None:
    content = "Hi<|im_end|></think>"
    received = await run(server, TEXT_OPENING, text(content))
    assert len(received.verdicts) == len(tokenizer.encode_plain(content))
    assert not any(verdict.is_scaffold for verdict in received.verdicts)


async def test_user_turn_settles_the_answer_before(server: RunningServer, tokenizer: Tokenizer) -> None:
    received = await run(server, TEXT_OPENING, text("Mix flour"), user_turn("And then?"), text("Bake it."))
    first, second = (len(tokenizer.encode_plain(content)) for content in ("Mix flour", "Bake it."))
    assert len(received.verdicts) == first + second
    offsets = [verdict.text_end_offset for verdict in received.verdicts]
    assert offsets[first - 1] == len("Mix flour")
    assert offsets[-1] == len("Mix flourBake it.")
    assert [verdict.turn for verdict in received.prompt_verdicts] == [0, 1]


async def test_rollback_drops_the_held_word(server: RunningServer, tokenizer: Tokenizer) -> None:
    async with server.stream() as call:
        await call.send(TEXT_OPENING, text("Mix flour and wat"))
        num_tokens = len(tokenizer.encode_plain("Mix flour"))
        await call.read_verdicts(len(tokenizer.encode_plain("Mix flour and")))
        num_read = len(call.received.verdicts)
        received = await call.run(rollback(num_tokens), text(" or salt"))
    after = received.verdicts[num_read:]
    assert after[0].index == num_tokens
    assert after[-1].text_end_offset == len("Mix flour or salt")
    fresh = await run(server, TEXT_OPENING, text("Mix flour", flush=True), text(" or salt"))
    assert_same_verdicts(after, fresh.verdicts[num_tokens:])


async def test_cut_text_offset(server: RunningServer, tokenizer: Tokenizer) -> None:
    content = f"qzx: {TEXT}"
    ids = tokenizer.encode_plain(content)
    risky = [index for index in range(len(ids) - 1) if ids[index] >= 200 and ids[index + 1] >= 200]
    assert risky[0] > 0
    server.stream_gate.substitute(ScriptedModel())
    received = await run(server, TEXT_OPENING, text(content))
    (decision,) = received.decisions
    assert decision.cut_index == risky[0]
    assert decision.HasField("cut_text_offset")
    assert decision.cut_text_offset == received.verdicts[risky[0] - 1].text_end_offset


async def test_finish_right_behind_the_text(server: RunningServer, tokenizer: Tokenizer) -> None:
    async with server.stream() as call:
        async with server.taking(3):
            await call.send(TEXT_OPENING, text("Bread"), finish())
        received = await call.read_all()
    assert len(received.verdicts) == len(tokenizer.encode_plain("Bread"))
