"""Streams that go well: what a caller is told, when, and that it never depends on how the tokens came."""

import asyncio
from dataclasses import replace

import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.model.tokens import Tokenizer
from tests.rpc.messages import (
    answer_ids,
    assistant,
    finish,
    opening,
    system,
    templated_opening,
    tokens,
    user,
    user_tokens,
    user_turn,
)
from tests.rpc.running_server import RunningServer
from tests.rpc.stream_call import (
    Received,
    assert_same_prompt_verdict,
    assert_same_verdicts,
)


@pytest.fixture
def tokenizer(server: RunningServer) -> Tokenizer:
    assert server.models.stream
    return server.models.stream.tokenizer


async def run(server: RunningServer, *requests: pb.ModerateStreamRequest) -> Received:
    async with server.stream() as call:
        return await call.run(*requests)


async def test_order_of_responses(server: RunningServer) -> None:
    async with server.stream() as call:
        await call.send(opening(policy="strict"))
        assert await call.read() == "opened"
        assert await call.read() == "prompt_verdict"
        await call.send(tokens(answer_ids(20)))
        await call.read_verdicts(20)
        await call.send(finish())
        received = await call.read_all()
    assert received.kinds[2] == "verdicts"
    assert received.kinds[-1] == "summary"
    assert received.kinds.count("opened") == received.kinds.count("summary") == 1
    assert [verdict.index for verdict in received.verdicts] == list(range(20))


async def test_opened_tells_what_holds(server: RunningServer, tokenizer: Tokenizer) -> None:
    first, second = await run(server, opening(policy="strict")), await run(server, opening(policy="strict"))
    info = await server.info()
    (model,) = [model for model in info.models if model.kind == pb.MODEL_KIND_STREAM]
    assert first.opened
    assert second.opened
    assert first.opened.session_id
    assert first.opened.session_id != second.opened.session_id
    assert (first.opened.model, first.opened.model_revision) == (model.name, model.revision)
    assert first.opened.policy == "strict"
    rendered = "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    num_tokens = len(tokenizer.encode_template(rendered))
    assert first.opened.num_prompt_tokens == num_tokens
    assert first.opened.num_tokens_left == model.max_context_tokens - num_tokens
    assert first.opened.limits == info.limits


async def test_verdicts_hold_together(server: RunningServer) -> None:
    received = await run(server, opening(), tokens(answer_ids(32)), tokens(answer_ids(32, seed=1)))
    assert len({verdict.risk_level for verdict in received.verdicts}) > 1, "the small model should be lively"
    for verdict in received.verdicts:
        assert sum(verdict.probabilities) == pytest.approx(1.0, abs=1e-5)
        assert max(verdict.probabilities) == verdict.probabilities[verdict.risk_level - 1]
        is_safe = verdict.risk_level == pb.RISK_LEVEL_SAFE
        assert is_safe == (verdict.category == pb.CATEGORY_UNSPECIFIED) == (verdict.category_probability == 0)
        assert verdict.category != pb.CATEGORY_JAILBREAK
        assert not verdict.is_scaffold
        assert verdict.text_end_offset is None


async def test_summary_adds_up(server: RunningServer) -> None:
    received = await run(server, opening(), tokens(answer_ids(32)))
    summary = received.summary
    assert summary
    assert summary.end_reason == pb.END_REASON_FINISHED
    levels = [verdict.risk_level for verdict in received.verdicts]
    assert summary.num_tokens == 32
    assert [summary.num_safe_tokens, summary.num_controversial_tokens, summary.num_unsafe_tokens] == [
        levels.count(level) for level in (1, 2, 3)
    ]
    assert summary.prompt_verdict == received.prompt_verdicts[0]
    assert summary.time_to_prompt_verdict.ToNanoseconds() > 0
    assert summary.duration.ToNanoseconds() >= summary.time_to_prompt_verdict.ToNanoseconds()


async def test_summary_of_a_stream_without_tokens(server: RunningServer) -> None:
    summary = (await run(server, opening())).summary
    assert summary
    assert (summary.num_tokens, summary.risk_level) == (0, pb.RISK_LEVEL_UNSPECIFIED)
    assert summary.prompt_verdict.risk_level != pb.RISK_LEVEL_UNSPECIFIED


@pytest.mark.parametrize("chunk_size", [1, 3, 8])
async def test_chunking_changes_nothing(server: RunningServer, chunk_size: int) -> None:
    ids = answer_ids(24)
    whole = await run(server, opening(), tokens(ids))
    chunks = [tokens(ids[start : start + chunk_size], start) for start in range(0, len(ids), chunk_size)]
    async with server.stream() as call:
        await call.send(opening())
        for number, chunk in enumerate(chunks, 1):  # each judged before the next comes
            await call.send(chunk)
            await call.read_verdicts(min(number * chunk_size, len(ids)))
        pieces = await call.run()
    assert_same_verdicts(pieces.verdicts, whole.verdicts)
    assert pieces.decisions == whole.decisions
    assert_same_verdicts((await run(server, opening(), *chunks)).verdicts, whole.verdicts)  # all pushed at once


async def test_streams_at_once_give_what_each_gives_alone(server: RunningServer) -> None:
    conversations = [
        (opening([user(f"Question {number}" * (number + 1))]), tokens(answer_ids(20 + number, seed=number)))
        for number in range(server.config.max_sessions)
    ]
    alone = [await run(server, *requests) for requests in conversations]
    server.stream_gate.hold()  # so that they meet in one step
    together = asyncio.gather(*(run(server, *requests) for requests in conversations))
    async with server.taking(3 * len(conversations)):
        pass
    server.stream_gate.release()
    for found, expected in zip(await together, alone, strict=True):
        assert_same_verdicts(found.verdicts, expected.verdicts)
        assert_same_prompt_verdict(found.prompt_verdicts[0], expected.prompt_verdicts[0])
    load = (await server.info()).load
    assert load.num_step_sequences > load.num_steps
    assert load.num_step_tokens > load.num_step_sequences


async def test_templated_prompt_equals_messages(server: RunningServer, tokenizer: Tokenizer) -> None:
    messages = [system("Be brief."), user(), assistant("Mix flour and water."), user("And then?")]
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow do I bake bread?<|im_end|>\n"
        "<|im_start|>assistant\nMix flour and water.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    by_messages = await run(server, opening(messages), tokens(answer_ids(20)))
    by_ids = await run(server, templated_opening(tokenizer.encode_template(rendered)), tokens(answer_ids(20)))
    assert by_messages.opened
    assert by_ids.opened
    assert by_messages.opened.num_prompt_tokens == by_ids.opened.num_prompt_tokens
    assert_same_prompt_verdict(by_ids.prompt_verdicts[0], by_messages.prompt_verdicts[0])
    assert_same_verdicts(by_ids.verdicts, by_messages.verdicts)


async def test_thinking(server: RunningServer, tokenizer: Tokenizer) -> None:
    off = await run(server, opening(thinking=pb.THINKING_OFF), tokens(answer_ids(12)))
    unspecified = await run(server, opening(), tokens(answer_ids(12)))
    block = tokenizer.encode_template("<think>\n\n</think>\n\n")
    on = await run(server, opening(thinking=pb.THINKING_ON), tokens([*block, *answer_ids(12)]))
    assert off.opened
    assert on.opened
    assert unspecified.opened
    assert off.opened.num_prompt_tokens == unspecified.opened.num_prompt_tokens
    assert on.opened.num_prompt_tokens == off.opened.num_prompt_tokens - len(block)
    assert [verdict.is_scaffold for verdict in on.verdicts] == [True] * len(block) + [False] * 12
    assert [verdict.risk_level for verdict in on.verdicts[len(block) :]] == [
        verdict.risk_level for verdict in off.verdicts
    ]
    assert on.summary
    assert on.summary.num_tokens == len(block) + 12
    num_counted = on.summary.num_safe_tokens + on.summary.num_controversial_tokens + on.summary.num_unsafe_tokens
    assert num_counted == 12


@pytest.mark.parametrize("closes_itself", [False, True])
async def test_second_turn_equals_a_conversation_with_both(
    server: RunningServer, tokenizer: Tokenizer, closes_itself: bool
) -> None:
    answer = tokenizer.encode_plain("Mix flour and water.")
    end = [tokenizer.control.im_end] if closes_itself else []
    streamed = await run(
        server, opening(), tokens([*answer, *end]), user_turn("And then?"), tokens(answer_ids(9), len(answer + end))
    )
    rendered = (
        "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        "Mix flour and water.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    opened = await run(server, templated_opening(tokenizer.encode_template(rendered)), tokens(answer_ids(9)))
    assert [verdict.turn for verdict in streamed.prompt_verdicts] == [0, 1]
    assert_same_prompt_verdict(streamed.prompt_verdicts[1], opened.prompt_verdicts[0])
    second = [replace(verdict, index=verdict.index - len(answer + end)) for verdict in streamed.verdicts]
    assert_same_verdicts(second[len(answer + end) :], opened.verdicts)
    assert streamed.summary
    assert streamed.summary.prompt_verdict.turn == 1
    assert streamed.summary.num_tokens == len(answer + end) + 9


async def test_user_turn_as_ids_equals_text(server: RunningServer, tokenizer: Tokenizer) -> None:
    as_text = await run(server, opening(), tokens(answer_ids(5)), user_turn("And then?"), tokens(answer_ids(5)))
    ids = tokenizer.encode_plain("And then?")
    as_ids = await run(server, opening(), tokens(answer_ids(5)), user_tokens(ids), tokens(answer_ids(5)))
    assert_same_prompt_verdict(as_ids.prompt_verdicts[1], as_text.prompt_verdicts[1])
    assert_same_verdicts(as_ids.verdicts, as_text.verdicts)
