"""The ModerationService: each call read, handed to the engine, and answered."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.access.metering import Meter
from guardwire_server.access.usage import TenantUsage, caller_usage
from guardwire_server.core.errors import InvalidField, RequestError
from guardwire_server.core.events import InputEnded, InputRefused, OpenRequested, SequenceFailed
from guardwire_server.core.observation import EngineLoad
from guardwire_server.core.policy import Policy
from guardwire_server.core.verdict import Role
from guardwire_server.engine.classifier import Classification, Classifier
from guardwire_server.engine.faults import internal_error
from guardwire_server.engine.session_manager import SessionManager
from guardwire_server.engine.stream_session import StreamSession
from guardwire_server.rpc.bounded_writes import BoundedWrites
from guardwire_server.rpc.caller import tenant_name
from guardwire_server.rpc.catalogue import Catalogue
from guardwire_server.rpc.many_streams import ManyStreams
from guardwire_server.rpc.requests import RequestReader
from guardwire_server.rpc.responses import StreamWriter, classify_response, server_info
from guardwire_server.rpc.status import to_status
from guardwire_server.rpc.tenant_limits import limits_for
from guardwire_server.telemetry.evaluations import Evaluated, Evaluation
from guardwire_server.telemetry.server import ServerTelemetry

TOKENIZER_CHUNK_BYTES = 65536
"""The size of GetTokenizer's messages: far below gRPC's default limit, large against the cost of a message."""

ABORT_TIMEOUT_S = 5.0
"""A caller that reads nothing cannot be told so either; after this its call is dropped."""

CALL_IS_OVER = (asyncio.InvalidStateError, grpc.aio.InternalError)
"""What a write raises on a call that has ended, and on one whose end, such as its deadline, overtakes the write."""

Context = grpc.aio.ServicerContext[Any, Any]


class ModerationService(pb_grpc.ModerationServiceServicer):
    """Answers the calls. Thread: the event loop. Keeps nothing between calls."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        manager: SessionManager | None,
        classifier: Classifier | None,
        stream_load: Callable[[], EngineLoad],
        telemetry: ServerTelemetry,
    ) -> None:
        """Serves a catalogue; `manager` or `classifier` is None where the catalogue lacks the model."""
        self._telemetry = telemetry
        self._catalogue = catalogue
        self._manager = manager
        self._classifier = classifier
        self._stream_load = stream_load
        self._reader = RequestReader(catalogue)

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:  # noqa: N802
        """Judges a finished conversation."""
        async with self._errors_as_status(context):
            usage = caller_usage()
            catalogue, reader = self._served_to(usage)
            messages, policy = reader.classify(request)
            model = catalogue.require_gen_model()
            assert self._classifier is not None  # it comes with the model
            with usage.admit_call():
                result = await self._classifier.classify(messages, policy, _remaining_s(context))
            self._telemetry.classified(
                _evaluation(result, messages[-1].role, policy),
                Evaluated(policy.name, model.name, tenant=tenant_name() or None),
                num_prompt_tokens=result.num_prompt_tokens,
                num_passes=result.num_passes,
            )
            return classify_response(result, model, policy)
        return pb.ClassifyResponse()  # never sent: the call is over

    async def ModerateStream(  # type: ignore[override]  # noqa: N802 writes through the context, to bound each write
        self, request_iterator: AsyncIterator[pb.ModerateStreamRequest], context: Context
    ) -> None:
        """Judges an answer while it is being written."""
        async with self._errors_as_status(context):
            usage = caller_usage()
            catalogue, request_reader = self._served_to(usage)
            model = catalogue.require_stream_model()
            assert self._manager is not None  # it comes with the model
            observe = self._telemetry.stream_observers(model.name, tenant_name(), has_own_call=True)
            with usage.admit_stream():
                async with self._manager.open(observe=observe) as stream:
                    meter = Meter(usage, self._manager.renderer)
                    reader = asyncio.create_task(_read(context, stream, request_reader, meter))
                    writer = StreamWriter(stream.session_id, model, catalogue.limits)
                    try:
                        with self._bounded_writes(context) as responses:
                            async for update in stream.updates():
                                await responses.write(writer.response(update))
                    finally:
                        reader.cancel()
                        await asyncio.wait([reader])

    async def ModerateStreams(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModerateStreamsRequest], context: Context
    ) -> None:
        """Judges many answers on one call, while they are being written."""
        async with self._errors_as_status(context):
            usage = caller_usage()
            catalogue, request_reader = self._served_to(usage)
            model = catalogue.require_stream_model()
            assert self._manager is not None  # it comes with the model
            many = ManyStreams(self._manager, request_reader, model, catalogue.limits, usage, self._telemetry)
            with contextlib.closing(many):
                reader = asyncio.create_task(_read_many(request_iterator, many))
                try:
                    with self._bounded_writes(context) as responses:
                        async for response in many.responses():
                            await responses.write(response)
                    await reader  # raises what ended the input, if that was no end in good order
                finally:
                    reader.cancel()
                    await asyncio.wait([reader])

    async def GetServerInfo(  # noqa: N802
        self, request: pb.GetServerInfoRequest, context: Context
    ) -> pb.GetServerInfoResponse:
        """Tells what the server is."""
        catalogue, _ = self._served_to(caller_usage())
        return server_info(
            catalogue,
            num_sessions=self._manager.num_sessions if self._manager else 0,
            num_calls=self._classifier.num_calls if self._classifier else 0,
            stream_load=self._stream_load(),
        )

    async def GetTokenizer(  # type: ignore[override]  # noqa: N802
        self, request: pb.GetTokenizerRequest, context: Context
    ) -> None:
        """Sends a tokenizer in chunks."""
        async with self._errors_as_status(context):
            model = self._reader.tokenizer_model(request)
            content = model.tokenizer_json
            with self._bounded_writes(context) as responses:
                for start in range(0, len(content), TOKENIZER_CHUNK_BYTES):
                    response = pb.GetTokenizerResponse(chunk=content[start : start + TOKENIZER_CHUNK_BYTES])
                    if not start:
                        response.num_bytes = len(content)
                        response.tokenizer_fingerprint = model.tokenizer_fingerprint
                    await responses.write(response)

    def _served_to(self, usage: TenantUsage) -> tuple[Catalogue, RequestReader]:
        """The catalogue and the reader of requests with the limits that hold for a tenant now."""
        limits = limits_for(usage.limits, self._catalogue.limits)
        if limits == self._catalogue.limits:
            return self._catalogue, self._reader
        catalogue = replace(self._catalogue, limits=limits)
        return catalogue, RequestReader(catalogue)

    @contextlib.asynccontextmanager
    async def _errors_as_status(self, context: Context) -> AsyncIterator[None]:
        """Ends the call with the status of whatever error leaves the block; what nobody foresaw becomes INTERNAL."""
        try:
            yield
        except RequestError as error:
            await self._abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except CALL_IS_OVER:
            context.set_code(grpc.StatusCode.CANCELLED)  # nobody is told any more, but what is recorded should be true
        except Exception:
            await self._abort(context, internal_error("call failed"))

    async def _abort(self, context: Context, error: RequestError) -> None:
        self._telemetry.calls.failed(error, tenant_name())
        with contextlib.suppress(*CALL_IS_OVER, TimeoutError):
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await context.abort_with_status(rpc_status.to_status(to_status(error)))

    def _bounded_writes(self, context: Context) -> BoundedWrites:
        return BoundedWrites(context, self._catalogue.limits.write_timeout_s)


async def _read(
    context: Context,
    stream: StreamSession,
    reader: RequestReader,
    meter: Meter,
) -> None:
    """Hands the caller's messages to the session, as fast as it wants them.

    The end of the caller's half, a cancellation and a lost connection all look the same here; the protocol tells
    them apart by `finish`.
    """
    try:
        # gRPC's own iterator is two coroutines more for every message.
        while (request := await context.read()) is not grpc.aio.EOF:
            try:
                if (token_id := reader.single_token(request)) is not None:
                    meter.take_token()
                    stream.push(token_id)
                elif isinstance(event := reader.stream_event(request), OpenRequested):
                    await stream.handle_open(await meter.take_prompt(event))
                else:
                    meter.take_pushed(event)
                    stream.handle(event)
            except RequestError as error:
                stream.handle(InputRefused(error))
            if not stream.listens:
                await stream.ready_for_input()
        stream.handle(InputEnded())
    except DecodeError:
        stream.handle(InputRefused(InvalidField("MALFORMED_REQUEST", "", "not a ModerateStreamRequest")))
    except Exception:
        stream.handle(SequenceFailed(internal_error("call failed")))


async def _read_many(requests: AsyncIterator[pb.ModerateStreamsRequest], many: ManyStreams) -> None:
    """Hands the caller's messages to the streams of a ModerateStreams call.

    Raises:
        InvalidField: If a message cannot be parsed: then nobody knows whose it was.
    """
    try:
        async for request in requests:
            await many.take(request)
    except DecodeError:
        raise InvalidField("MALFORMED_REQUEST", "", "not a ModerateStreamsRequest") from None
    finally:
        many.end_input()


def _remaining_s(context: Context) -> float | None:
    """Seconds to the call's deadline, or None if it has none."""
    remaining_s: float | None = context.time_remaining()
    return remaining_s


def _evaluation(result: Classification, role: Role, policy: Policy) -> Evaluation:
    """What an answered Classify call found, for telemetry: the first category that the model names counts."""
    answer = result.answer
    score = result.probabilities.of(answer.risk_level) if answer and result.probabilities else None
    return Evaluation(
        action=result.action,
        reason=result.reason,
        role=role,
        risk_level=answer.risk_level if answer else None,
        category=answer.categories[0] if answer and answer.categories else None,
        score=score,
        enforced=not policy.observe_only,
    )
