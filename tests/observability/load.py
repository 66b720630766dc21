"""A little of everything that callers do, so that every metric has something to tell."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.verdict import RiskLevel
from tests.observability.secured_server import SecuredServer
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import assistant, finish, opening, rollback, text, tokens, user
from tests.rpc.scripted_model import CONTROVERSIAL_ID, SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.rpc.stream_call import WAIT_S, StreamCall
from tests.rpc.test_classify import script

_SAFE, _CONTROVERSIAL, _UNSAFE = [SAFE_ID] * 4, [CONTROVERSIAL_ID] * 2, [UNSAFE_ID] * 2


async def one_round(server: SecuredServer) -> None:
    """Streams that end in every way, Classify calls with and without a verdict, and refusals."""
    server.stream_gate.substitute(ScriptedModel(RiskLevel.UNSAFE, RiskLevel.CONTROVERSIAL))
    await _judge_streams(server)
    await _lose_streams(server)
    await _classify(server)
    await _be_refused(server)
    await server.info()
    async for _ in server.stub.GetTokenizer(pb.GetTokenizerRequest(model_kind=pb.MODEL_KIND_STREAM)):
        pass


async def _judge_streams(server: SecuredServer) -> None:
    async with server.stream() as call:
        await call.send(opening(), tokens(_SAFE + _CONTROVERSIAL))
        await call.read_verdicts(6)
        received = await call.run(rollback(3), tokens(_SAFE + _UNSAFE))
        assert received.decisions[-1].enforced
    async with server.stream() as call:
        received = await call.run(opening(policy="observe"), tokens(_UNSAFE))
        assert not received.decisions[-1].enforced
    async with server.stream() as call:
        assert (await call.run(opening(input=pb.INPUT_KIND_TEXT), text("Bake it for an hour."))).summary
    async with ManyCall(server) as many:
        await many.send((1, opening()), (2, opening()))
        await many.send_step((1, SAFE_ID), (2, UNSAFE_ID))
        await many.send((1, finish()), (2, finish()))
        assert await many.read_to_the_end() is grpc.StatusCode.OK


async def _lose_streams(server: SecuredServer) -> None:
    """One is left by its caller, one by the device."""
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("opened")
    async with server.stream() as call:
        await call.send(opening())
        await call.read_until("prompt_verdict")
        server.stream_gate.fail()
        await call.send(tokens(_SAFE))
        assert (await call.failure()).code is grpc.StatusCode.INTERNAL


async def _classify(server: SecuredServer) -> None:
    for answer, request in (
        ("Safety: Safe\nCategories: None", pb.ClassifyRequest(messages=[user()])),
        ("Safety: Unsafe\nCategories: Violent", pb.ClassifyRequest(messages=[user()])),
        ("Safety: Safe\nCategories: None\nRefusal: No", pb.ClassifyRequest(messages=[user(), assistant("Knead it.")])),
        ("I would rather not say.", pb.ClassifyRequest(messages=[user()])),
    ):
        script(server, answer)
        response = await server.stub.Classify(request, timeout=WAIT_S)
        assert response.judged == answer.startswith("Safety: ")


async def _be_refused(server: SecuredServer) -> None:
    """For naming what is not there, for being unknown, for being too many, as a tenant and in all."""
    assert (await server.classify_failure(pb.ClassifyRequest(messages=[user()], policy="none"))).reason
    with contextlib.suppress(grpc.aio.AioRpcError):
        await server.stranger.Classify(pb.ClassifyRequest(messages=[user()]), timeout=WAIT_S)
        raise AssertionError("a stranger was let in")
    async with server.narrow_stream() as call:
        await call.send(opening())
        await call.read_until("opened")
        async with server.narrow_stream() as other:
            assert (await other.failure()).reason == "TENANT_STREAMS"
    await server.counts()
    async with _open_streams(server, server.config.max_sessions), server.stream() as call:
        assert (await call.failure()).reason == "TOO_MANY_SESSIONS"
    await server.counts()


@contextlib.asynccontextmanager
async def _open_streams(server: SecuredServer, num_streams: int) -> AsyncIterator[list[StreamCall]]:
    async with contextlib.AsyncExitStack() as calls:
        opened = [await calls.enter_async_context(server.stream()) for _ in range(num_streams)]
        for call in opened:
            await call.send(opening())
        await asyncio.gather(*(call.read_until("opened") for call in opened))
        yield opened
