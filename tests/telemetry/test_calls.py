"""Every way a call can end, as an OTLP collector is told of it."""

import asyncio
import contextlib
from collections.abc import Sequence

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.rpc.bounded_writes import BoundedWrites
from tests.rpc.messages import answer_ids, finish, opening, tokens, user
from tests.rpc.running_server import RunningServer
from tests.telemetry.otlp_sink import OtlpSink, Received

SERVICE = "guardwire.v1.ModerationService"
CALLER = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
"""The traceparent of a caller that is traced."""

UNTRACED_CALLER = CALLER.removesuffix("01") + "00"


async def ended(sink: OtlpSink, method: str, code: str) -> Received[Span]:
    """The span of a call of that method, and a measurement of its duration, with that status."""
    span = await sink.span(f"{SERVICE}/{method}", rpc__response__status_code=code)
    error = {"error__type": code} if span.item.status.code == Status.STATUS_CODE_ERROR else {}
    point = await sink.point(
        "rpc.server.call.duration",
        at_least=1,
        rpc__system__name="grpc",
        rpc__method=f"{SERVICE}/{method}",
        rpc__response__status_code=code,
        **error,
    )
    assert point.count == 1
    assert span.item.kind == Span.SPAN_KIND_SERVER
    assert span.attributes["rpc.system.name"] == "grpc"
    assert span.attributes["rpc.method"] == f"{SERVICE}/{method}"
    assert span.attributes.get("error.type") == error.get("error__type")
    return span


async def stream_and(
    observed: RunningServer, end: str, timeout_s: float | None = None, kinds: Sequence[str] = ("opened",)
) -> None:
    """Opens a stream, pushes three tokens, reads responses of these kinds, and lets it end somehow."""
    async with observed.stream(timeout_s) as call:
        await call.send(opening(), tokens(answer_ids(3)))
        for kind in kinds:
            assert await call.read() == kind
        if end == "cancel":
            call.cancel()
        elif end == "half-close":
            await call.half_close()
        elif end == "finish":
            await call.send(finish())
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while await call.read():
                pass


async def test_a_call_that_succeeds(observed: RunningServer, sink: OtlpSink) -> None:
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]))
    span = await ended(sink, "Classify", "OK")
    assert span.item.status.code == Status.STATUS_CODE_UNSET
    assert span.scope.name == "guardwire"
    assert span.attributes["guardwire.num_passes"] >= 1
    assert span.attributes["guardwire.num_prompt_tokens"] > 0


@pytest.mark.parametrize(("policy", "enforced"), [("default", True), ("observe", False)])
async def test_whether_a_classification_is_enforced(
    observed: RunningServer, sink: OtlpSink, policy: str, enforced: bool
) -> None:
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()], policy=policy))
    log = await sink.log("gen_ai.evaluation.result", guardwire__policy=policy)
    assert log.attributes["guardwire.enforced"] is enforced


async def test_a_stream_that_finishes(observed: RunningServer, sink: OtlpSink) -> None:
    await stream_and(observed, "finish")
    span = await ended(sink, "ModerateStream", "OK")
    assert span.attributes["guardwire.end_reason"] == "finished"
    assert span.attributes["guardwire.num_tokens"] == 3


async def test_a_call_that_is_refused(observed: RunningServer, sink: OtlpSink) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await observed.stub.Classify(pb.ClassifyRequest())
    span = await ended(sink, "Classify", "INVALID_ARGUMENT")
    assert span.item.status.code == Status.STATUS_CODE_UNSET  # the caller's fault is no error of the server
    rejected = await sink.point(
        "guardwire.request.rejected", at_least=1, guardwire__reason=span.attributes["guardwire.reason"]
    )
    assert rejected.value == 1


async def test_a_call_that_is_cancelled(observed: RunningServer, sink: OtlpSink) -> None:
    observed.gen_gate.hold()
    call = observed.stub.Classify(pb.ClassifyRequest(messages=[user()]))
    await observed.gen_gate.arrival()
    call.cancel()
    span = await ended(sink, "Classify", "CANCELLED")
    assert span.item.status.code == Status.STATUS_CODE_UNSET


@pytest.mark.parametrize("end", ["cancel", "half-close"])
async def test_a_stream_that_is_abandoned(observed: RunningServer, sink: OtlpSink, end: str) -> None:
    await stream_and(observed, end)
    span = await ended(sink, "ModerateStream", "CANCELLED")
    assert span.item.status.code == Status.STATUS_CODE_UNSET
    assert span.attributes["guardwire.end_reason"] == "abandoned"


async def test_a_write_that_the_end_overtakes(
    observed: RunningServer, sink: OtlpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def overtaken(*_: object) -> None:
        raise grpc.aio.InternalError('Failed "execute_batch"')

    monkeypatch.setattr(BoundedWrites, "write", overtaken)
    await stream_and(observed, "cancel", kinds=())
    span = await ended(sink, "ModerateStream", "CANCELLED")
    assert span.item.status.code == Status.STATUS_CODE_UNSET


async def test_a_call_whose_deadline_passes(observed: RunningServer, sink: OtlpSink) -> None:
    observed.gen_gate.hold()
    with pytest.raises(grpc.aio.AioRpcError):
        await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]), timeout=0.2)
    span = await ended(sink, "Classify", "DEADLINE_EXCEEDED")
    assert span.item.status.code == Status.STATUS_CODE_ERROR


async def test_a_stream_whose_deadline_passes(observed: RunningServer, sink: OtlpSink) -> None:
    await stream_and(observed, "wait", timeout_s=0.5)
    span = await ended(sink, "ModerateStream", "DEADLINE_EXCEEDED")
    assert span.item.status.code == Status.STATUS_CODE_ERROR


async def test_a_step_that_fails(observed: RunningServer, sink: OtlpSink) -> None:
    observed.gen_gate.fail()
    failure = await observed.classify_failure(pb.ClassifyRequest(messages=[user()]))
    span = await ended(sink, "Classify", "INTERNAL")
    assert span.item.status.code == Status.STATUS_CODE_ERROR
    assert span.attributes["guardwire.request_id"] == failure.request_id
    step = await sink.span("guardwire.step", guardwire__model__kind="gen")
    assert step.item.status.code == Status.STATUS_CODE_ERROR


async def test_a_connection_that_breaks(observed: RunningServer, sink: OtlpSink) -> None:
    channel = grpc.aio.insecure_channel(observed.address, options=[("grpc.use_local_subchannel_pool", 1)])
    call = pb_grpc.ModerationServiceStub(channel).ModerateStream()
    await call.write(opening())
    await call.read()
    await channel.close(None)
    await ended(sink, "ModerateStream", "CANCELLED")


async def test_many_streams_on_a_call(observed: RunningServer, sink: OtlpSink) -> None:
    requests = [
        pb.StreamRequest(stream_id=stream_id, request=request)
        for stream_id in (1, 2)
        for request in (opening(), tokens(answer_ids(stream_id)), finish())
    ]
    call = observed.stub.ModerateStreams()
    await call.write(pb.ModerateStreamsRequest(requests=requests))
    await call.write(pb.ModerateStreamsRequest(requests=[pb.StreamRequest(stream_id=3, request=finish())]))
    await call.done_writing()
    async for _ in call:
        pass
    parent = await ended(sink, "ModerateStreams", "OK")
    for num_tokens in (1, 2):
        stream = await sink.span("guardwire.stream", guardwire__num_tokens=num_tokens)
        assert stream.item.parent_span_id == parent.item.span_id
        assert stream.attributes["guardwire.end_reason"] == "finished"
    await sink.point("guardwire.request.rejected", at_least=1, guardwire__reason="open_required")


async def test_a_callers_trace_goes_on(observed: RunningServer, sink: OtlpSink) -> None:
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]), metadata=(("traceparent", CALLER),))
    span = await ended(sink, "Classify", "OK")
    assert span.item.trace_id.hex() == CALLER.split("-")[1]
    assert span.item.parent_span_id.hex() == CALLER.split("-")[2]


async def test_a_caller_that_is_not_traced_stays_so(observed: RunningServer, sink: OtlpSink) -> None:
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]), metadata=(("traceparent", UNTRACED_CALLER),))
    await observed.stub.GetServerInfo(pb.GetServerInfoRequest())
    await ended(sink, "GetServerInfo", "OK")
    assert not [span for span in sink.spans if span.item.name.endswith("Classify")]
    await sink.point(
        "rpc.server.call.duration",
        at_least=1,
        rpc__system__name="grpc",
        rpc__method=f"{SERVICE}/Classify",
        rpc__response__status_code="OK",
    )


async def test_a_traceparent_that_is_none_begins_a_trace(observed: RunningServer, sink: OtlpSink) -> None:
    await observed.stub.Classify(pb.ClassifyRequest(messages=[user()]), metadata=(("traceparent", "nonsense"),))
    span = await ended(sink, "Classify", "OK")
    assert not span.item.parent_span_id


async def test_a_download_is_a_call_too(observed: RunningServer, sink: OtlpSink) -> None:
    async for _ in observed.stub.GetTokenizer(pb.GetTokenizerRequest()):
        pass
    await ended(sink, "GetTokenizer", "OK")


async def test_concurrent_calls_keep_their_spans_apart(observed: RunningServer, sink: OtlpSink) -> None:
    parents = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 5)]

    async def moderate(parent: str, num_tokens: int) -> None:
        call = observed.stub.ModerateStream(metadata=(("traceparent", parent),))
        for request in (opening(), tokens(answer_ids(num_tokens)), finish()):
            await call.write(request)
        async for _ in call:
            pass

    await asyncio.gather(*(moderate(parent, number) for number, parent in enumerate(parents, 1)))
    for number in range(1, 5):
        span = await sink.span(f"{SERVICE}/ModerateStream", guardwire__num_tokens=number)
        assert span.item.trace_id == number.to_bytes(16, "big")
        reading = [other.item for other in sink.spans if other.item.parent_span_id == span.item.span_id]
        assert "guardwire.prefill" in {child.name for child in reading}
        assert {child.trace_id for child in reading} == {span.item.trace_id}
