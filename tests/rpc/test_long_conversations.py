"""Conversations that are long enough to be tokenised beside the event loop: nothing else is different about them."""

import asyncio

import grpc
import pytest

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.ports import LONG_TEXT_CHARS
from tests.rpc.messages import answer_ids, opening, tokens, user
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.scripted_model import ScriptedModel
from tests.rpc.stream_call import assert_same_verdicts

SENTENCE = "The quick brown fox doesn't jump over the lazy dog. "
LONG = SENTENCE * (LONG_TEXT_CHARS // len(SENTENCE) + 1)


@pytest.fixture
async def roomy(start_server: StartServer) -> RunningServer:
    """A server that takes long messages, with a stream model that costs nothing."""
    server = await start_server(max_message_bytes=2 * len(LONG), max_context_tokens=8192)
    server.stream_gate.substitute(ScriptedModel())
    return server


async def test_long_prompt(roomy: RunningServer) -> None:
    async with roomy.stream() as call:
        received = await call.run(opening([user(LONG)]), tokens(answer_ids(5)))
    async with roomy.stream() as call:
        short = await call.run(opening([user(SENTENCE)]))
    assert roomy.models.stream
    encode = roomy.models.stream.tokenizer.encode_plain
    num_more = len(encode(f"user\n{LONG}")) - len(encode(f"user\n{SENTENCE}"))
    assert received.opened
    assert short.opened
    assert received.opened.num_prompt_tokens - short.opened.num_prompt_tokens == num_more
    assert len(received.verdicts) == 5
    await roomy.settled()


async def test_second_open_with_a_long_prompt(roomy: RunningServer) -> None:
    async with roomy.stream() as call:
        await call.send(opening(), tokens(answer_ids(5)), opening([user(LONG)]))
        assert (await call.failure()).reason == "ALREADY_OPEN"
        assert len(call.received.verdicts) == 5
    await roomy.settled()


async def test_long_prompt_of_a_caller_that_goes_away(roomy: RunningServer) -> None:
    for _ in range(5):
        async with roomy.stream() as call:
            await call.send(opening([user(LONG)]))
    await roomy.settled()


async def test_long_prompt_beyond_the_context(start_server: StartServer) -> None:
    server = await start_server(max_message_bytes=2 * len(LONG))
    async with server.stream() as call:
        await call.send(opening([user(LONG)]))
        failure = await call.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_OVERFLOW")
    assert failure.field == "open.conversation"
    refused = await server.classify_failure(pb.ClassifyRequest(messages=[user(LONG)]))
    assert (refused.code, refused.reason, refused.field) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "CONTEXT_OVERFLOW",
        "messages",
    )


async def test_an_answer_that_slides_out_of_the_context(start_server: StartServer) -> None:
    """Three times as many tokens as the context holds: the same verdicts whether they come one by one or in chunks."""
    server = await start_server(max_context_tokens=64)
    ids, begin = answer_ids(192), opening(context_overflow=pb.CONTEXT_OVERFLOW_SLIDE)
    async with server.stream() as call:
        one_by_one = await call.run(begin, *(tokens([token_id]) for token_id in ids))
    async with server.stream() as call:
        in_chunks = await call.run(begin, *(tokens(ids[start : start + 30], start) for start in range(0, 192, 30)))
    assert [verdict.index for verdict in in_chunks.verdicts] == list(range(192))
    assert_same_verdicts(in_chunks.verdicts, one_by_one.verdicts)
    assert in_chunks.summary
    assert in_chunks.summary.num_tokens == 192
    await server.settled()


async def test_long_calls_count_while_they_are_tokenised(start_server: StartServer) -> None:
    server = await start_server(max_message_bytes=2 * len(LONG), max_context_tokens=16384)
    server.gen_gate.hold()
    request = pb.ClassifyRequest(messages=[user(LONG)])
    calls = [asyncio.ensure_future(server.stub.Classify(request)) for _ in range(8)]
    done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < len(calls) - server.config.max_classify_calls:
        more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    for call in done:
        error = call.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in pending:
        call.cancel()
    await server.counts()
    server.gen_gate.release()
    await server.settled()
