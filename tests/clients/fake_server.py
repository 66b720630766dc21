"""A faithful fake of the server: the contract, with word lists for a model.

`boom` and `bomb` are Unsafe, `knife` is Controversial, everything else is Safe. Two risky words of one level in a row
decide: BLOCK for Unsafe, FLAG for Controversial.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from grpc import aio
from grpc_status import rpc_status

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from tests.clients.fake_step import packed, requests_of
from tests.clients.fake_stream import VOCABULARY, FakeStream, StreamFault, judge_words
from tests.clients.fake_tokenizer import tokenizer_fingerprint, tokenizer_json

Context = aio.ServicerContext[Any, Any]

DRAINING = pb.ModerateStreamResponse(draining=pb.Draining(deadline=Timestamp(seconds=1_800_000_000)))
LIMITS = pb.Limits(max_sessions=64, max_tokens_per_message=16, max_message_bytes=4096, max_messages=16)


@dataclass(frozen=True)
class Failure:
    """How a call is to end."""

    code: grpc.StatusCode
    message: str = "as scripted"
    details: tuple[ProtobufMessage, ...] = ()


_FakeT = TypeVar("_FakeT", bound="FakeServer")


class FakeServer(pb_grpc.ModerationServiceServicer):
    """What tests set decides how the next calls go; what tests read tells how the last ones went."""

    def __init__(self) -> None:
        self.target = ""
        self.failure: Failure | None = None  # ends every call
        self.fails_after = 0  # on streams, or on a call with many: after so many requests besides `open`
        self.responses: Sequence[pb.ModerateStreamResponse] | None = None  # a stream's instead of the real ones
        self.step: pb.StepVerdicts | None = None  # in the next message to many streams, instead of the real one
        self.pieces: Sequence[pb.GetTokenizerResponse] | None = None  # a tokenizer's instead of the real ones
        self.policies_version = "5" * 64
        self.silent = False  # nothing is ever answered
        self.drains = False
        self.hangs_up = False  # ends a call with many streams at its next message
        self.metadata: dict[str, str | bytes] = {}
        self.classify_requests: list[pb.ClassifyRequest] = []
        self.opens: list[pb.StreamOpen] = []
        self.requests: list[pb.ModerateStreamRequest] = []  # of all streams, without `open`
        self.messages: list[pb.ModerateStreamsRequest] = []  # of calls with many streams
        self.num_active = 0
        self.num_abandoned = 0  # streams
        self.num_half_closed = 0  # calls with many streams
        self._changed = asyncio.Condition()

    async def start(self, credentials: grpc.ServerCredentials | None = None) -> aio.Server:
        server = aio.server()
        pb_grpc.add_ModerationServiceServicer_to_server(self, server)
        address = "localhost:0"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        self.target = f"localhost:{port}"
        await server.start()
        return server

    async def wait_idle(self) -> None:
        """Until no call runs; a call that leaked shows as TimeoutError."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.num_active == 0)

    async def wait_active(self, num_calls: int) -> None:
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.num_active == num_calls)

    async def Classify(  # noqa: N802
        self, request: pb.ClassifyRequest, context: Context
    ) -> pb.ClassifyResponse:
        self.metadata = dict(context.invocation_metadata() or ())
        self.classify_requests.append(request)
        await self._arrive()
        try:
            await self._misbehave(context)
            return judge_words(request)
        finally:
            await self._depart()

    async def GetServerInfo(  # noqa: N802
        self,
        request: pb.GetServerInfoRequest,
        context: Context,
    ) -> pb.GetServerInfoResponse:
        self.metadata = dict(context.invocation_metadata() or ())
        await self._misbehave(context)
        turn = pb.TurnPolicy(
            unsafe=pb.ACTION_BLOCK,
            categories=[pb.CategoryAction(category=pb.CATEGORY_PII, action=pb.ACTION_FLAG)],
        )
        return pb.GetServerInfoResponse(
            version="0.1.0",
            models=[
                pb.ModelInfo(
                    kind=pb.MODEL_KIND_STREAM,
                    name="fake-stream",
                    revision="1",
                    tokenizer_fingerprint=tokenizer_fingerprint(),
                    vocabulary_size=len(VOCABULARY) + 1,
                    max_context_tokens=8192,
                    prompt_categories=[pb.CATEGORY_VIOLENT, pb.CATEGORY_JAILBREAK],
                    dtype="float32",
                    device="cpu",
                    demo=True,
                )
            ],
            policies=[
                pb.PolicyInfo(
                    name="default",
                    description="blocks Unsafe",
                    strictness=pb.STRICTNESS_LOOSE,
                    debounce=pb.DEBOUNCE_SAME_LEVEL,
                    user=turn,
                    assistant=turn,
                    on_error=pb.ACTION_BLOCK,
                )
            ],
            policies_version=self.policies_version,
            limits=LIMITS,
            load=pb.Load(num_sessions=self.num_active, num_steps=10, num_step_sequences=20),
        )

    async def GetTokenizer(  # noqa: N802
        self,
        request: pb.GetTokenizerRequest,
        context: Context,
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        self.metadata = dict(context.invocation_metadata() or ())
        await self._misbehave(context)
        content = tokenizer_json()
        first = pb.GetTokenizerResponse(num_bytes=len(content), tokenizer_fingerprint=tokenizer_fingerprint())
        pieces = [first, *(pb.GetTokenizerResponse(chunk=content[at : at + 50]) for at in range(0, len(content), 50))]
        for piece in self.pieces if self.pieces is not None else pieces:
            yield piece

    async def ModerateStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.ModerateStreamRequest],
        context: Context,
    ) -> AsyncIterator[pb.ModerateStreamResponse]:
        self.metadata = dict(context.invocation_metadata() or ())
        await self._arrive()
        stream: FakeStream | None = None
        try:
            async for request in request_iterator:
                if stream is None:
                    self.opens.append(request.open)
                    stream = FakeStream(request.open)
                    if self.fails_after == 0:
                        await self._misbehave(context)
                else:
                    self.requests.append(request)
                    if 0 < self.fails_after <= len(self.requests):
                        await self._misbehave(context)
                try:
                    responses = stream.handle(request, LIMITS) if self.responses is None else self.responses
                except StreamFault as fault:
                    await _abort(context, Failure(fault.code, str(fault)))
                for response in responses:
                    yield response
                if self.drains and request.HasField("open"):
                    yield DRAINING
                if stream.over or self.responses is not None:
                    return
        finally:
            self.num_abandoned += stream is None or not stream.over
            await self._depart()

    async def ModerateStreams(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.ModerateStreamsRequest],
        context: Context,
    ) -> AsyncIterator[pb.ModerateStreamsResponse]:
        self.metadata = dict(context.invocation_metadata() or ())
        await self._arrive()
        streams: dict[int, FakeStream] = {}
        packs = False
        try:
            async for message in request_iterator:
                self.messages.append(message)
                packs |= message.HasField("step")
                responses = []
                for item in requests_of(message):
                    if not item.request.HasField("open"):
                        self.requests.append(item.request)
                    if self.fails_after <= len(self.requests):
                        await self._misbehave(context)
                    responses += self._take(streams, item)
                answer = packed(responses) if packs else pb.ModerateStreamsResponse(responses=responses)
                if self.step is not None:
                    answer.step.CopyFrom(self.step)
                    self.step = None
                hangs_up = self.hangs_up  # once the answer is out, a test may go on and change it
                yield answer
                if hangs_up:
                    return
            self.num_half_closed += 1
        finally:
            self.num_abandoned += len(streams)
            await self._depart()

    def _take(self, streams: dict[int, FakeStream], item: pb.StreamRequest) -> list[pb.StreamResponse]:
        """What one stream of many answers to a request; a stream that ends leaves."""
        stream_id, request = item.stream_id, item.request
        try:
            if stream_id not in streams:
                if not request.HasField("open"):
                    raise StreamFault(grpc.StatusCode.FAILED_PRECONDITION, "the first message must be open")
                self.opens.append(request.open)
                streams[stream_id] = FakeStream(request.open)
            stream = streams[stream_id]
            responses = stream.handle(request, LIMITS) if self.responses is None else self.responses
        except StreamFault as fault:
            streams.pop(stream_id, None)
            error = pb.StreamError(code=fault.code.value[0], message=str(fault), reason="REFUSED", field="request")
            return [pb.StreamResponse(stream_id=stream_id, error=error)]
        if stream.over:
            del streams[stream_id]
        if self.drains and request.HasField("open"):
            responses = [*responses, DRAINING]
        return [pb.StreamResponse(stream_id=stream_id, response=response) for response in responses]

    async def _misbehave(self, context: Context) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.failure is not None:
            await _abort(context, self.failure)

    async def _arrive(self) -> None:
        async with self._changed:
            self.num_active += 1
            self._changed.notify_all()

    async def _depart(self) -> None:
        async with self._changed:
            self.num_active -= 1
            self._changed.notify_all()


async def _abort(context: Context, failure: Failure) -> None:
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    for detail in failure.details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


@contextlib.asynccontextmanager
async def running(fake: _FakeT) -> AsyncIterator[_FakeT]:
    """Serves; at the end of the block no call may be left."""
    server = await fake.start()
    try:
        yield fake
        await fake.wait_idle()
    finally:
        await server.stop(None)
