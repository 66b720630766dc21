"""The client's spans and the server's are one trace, from a program that judges an answer down to a decision on it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from guardwire import AsyncClient, AsyncModerateStream, Client, GuardwireError
from guardwire_server.telemetry import names
from tests.clients.recorded_spans import SERVICE, RecordedSpans, outcome, span_id
from tests.rpc.running_server import RunningServer
from tests.rpc.scripted_model import SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.telemetry.otlp_sink import OtlpSink, Received

BAD_ANSWER = [SAFE_ID, UNSAFE_ID, UNSAFE_ID]
"""Blocked at its end, where the second unsafe token in a row is."""

NO_TOKEN_ID = 2**31 - 1
"""Beyond the vocabulary, which the server alone knows."""

Kind = type[AsyncClient | Client]
Way = Callable[[RunningServer, AsyncClient], Awaitable[object]]


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    """The spans of clients with its provider; each must have ended once when the test is over."""
    recorded = RecordedSpans()
    yield recorded
    recorded.provider.shutdown()
    assert not any(recorded.open.values())


def trace_id(span: ReadableSpan) -> bytes:
    assert span.context is not None
    return int(span.context.trace_id).to_bytes(16, "big")


async def served(sink: OtlpSink, call: ReadableSpan) -> Received[Span]:
    """The server's span of a call that a client made; checks that the two tell of the same call."""
    told = dict(call.attributes or {})
    same = (names.RPC_SYSTEM, names.RPC_METHOD, names.RPC_STATUS)
    span = await sink.span(call.name, **{name.replace(".", "__"): told[name] for name in same})
    assert (call.kind, span.item.kind) == (SpanKind.CLIENT, Span.SPAN_KIND_SERVER)
    assert call.name == told[names.RPC_METHOD]
    assert (span.item.trace_id, span.item.parent_span_id) == (trace_id(call), span_id(call).to_bytes(8, "big"))
    assert span.item.flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK  # the parent is
    assert len([other for other in sink.spans if other.item.name == call.name]) == 1
    return span


def children(sink: OtlpSink, parent: Received[Span]) -> list[str]:
    """The names of the spans below one, which are all of its trace."""
    found = [span.item for span in sink.spans if span.item.parent_span_id == parent.item.span_id]
    assert all(span.trace_id == parent.item.trace_id for span in found)
    return sorted(span.name for span in found)


async def run(
    kind: Kind,
    target: str,
    provider: TracerProvider,
    use: tuple[Callable[[AsyncClient], Awaitable[object]], Callable[[Client], object]],
) -> bytes:
    """Makes a call with a client of this kind, under a span of the caller's own; gives the id of its trace."""
    span = provider.get_tracer("test").start_as_current_span("answer")

    def in_thread() -> bytes:
        with Client(target, tracer_provider=provider) as client, span as answer:
            use[1](client)
            return answer.get_span_context().trace_id.to_bytes(16, "big")

    if kind is Client:
        return await asyncio.to_thread(in_thread)
    async with AsyncClient(target, tracer_provider=provider) as client:
        with span as answer:
            await use[0](client)
            return answer.get_span_context().trace_id.to_bytes(16, "big")


async def judge(stream: AsyncModerateStream, token_ids: Sequence[int] = BAD_ANSWER) -> str:
    """Has an answer judged to its end; gives the session's id."""
    async with stream:
        await stream.push(token_ids)
        await stream.finish()
        async for _ in stream:
            pass
        return stream.opened.session_id


def judge_in_thread(client: Client) -> None:
    with client.moderate("hello") as stream:
        stream.push(BAD_ANSWER)
        stream.finish()
        list(stream)


CLASSIFY = (lambda client: client.classify("hello"), lambda client: client.classify("hello"))
MODERATE = (lambda client: judge(client.moderate("hello")), judge_in_thread)
BOTH_KINDS = pytest.mark.parametrize("kind", [AsyncClient, Client])


@BOTH_KINDS
async def test_classify(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans, kind: Kind) -> None:
    caller = await run(kind, observed.address, spans.provider, CLASSIFY)
    (call,) = spans.named("Classify")
    assert (trace_id(call), outcome(call)) == (caller, ("OK", None))
    span = await served(sink, call)
    event = await sink.log(names.EVALUATION_EVENT)
    assert (event.item.trace_id, event.item.span_id) == (caller, span.item.span_id)


@BOTH_KINDS
async def test_a_stream_with_a_call_to_itself(
    observed: RunningServer, sink: OtlpSink, spans: RecordedSpans, kind: Kind
) -> None:
    observed.stream_gate.substitute(ScriptedModel())
    caller = await run(kind, observed.address, spans.provider, MODERATE)
    (call,) = spans.named("ModerateStream")
    assert (trace_id(call), outcome(call)) == (caller, ("OK", None))
    span = await served(sink, call)
    assert children(sink, span) == [names.DECISION_SPAN, names.PREFILL_SPAN]
    decision, event = await sink.span(names.DECISION_SPAN), await sink.log(names.EVALUATION_EVENT)
    assert (event.item.trace_id, event.item.span_id) == (caller, span.item.span_id)
    told = dict(call.attributes or {})
    assert told[names.NUM_TOKENS] == span.attributes[names.NUM_TOKENS] == len(BAD_ANSWER)
    assert told[names.ACTION] == decision.attributes[names.ACTION] == event.attributes[names.ACTION] == "block"
    assert told[names.SESSION_ID] == span.attributes[names.SESSION_ID] == event.attributes[names.SESSION_ID]


async def test_streams_that_share_a_call(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans) -> None:
    observed.stream_gate.substitute(ScriptedModel())
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client:
        with spans.tracer.start_as_current_span("answers"):
            async with client.moderate_many() as many:
                judged = (judge(many.moderate("hello"), [*[SAFE_ID] * number, *BAD_ANSWER]) for number in (0, 5))
                session_ids = await asyncio.gather(*judged)
    (call,), (answers,) = spans.named("ModerateStreams"), spans.named("answers")
    span = await served(sink, call)
    assert trace_id(call) == trace_id(answers)
    ours = {(stream.attributes or {})[names.SESSION_ID]: stream for stream in spans.named("guardwire.stream")}
    assert ours.keys() == set(session_ids)
    for session_id, num_tokens in zip(session_ids, (3, 8), strict=True):
        stream = await sink.span(names.STREAM_SPAN, guardwire__session__id=session_id)
        assert stream.item.parent_span_id == span.item.span_id
        assert stream.item.trace_id == trace_id(ours[session_id]) == trace_id(answers)
        assert children(sink, stream) == [names.DECISION_SPAN, names.PREFILL_SPAN]
        assert stream.attributes[names.NUM_TOKENS] == num_tokens
        event = await sink.log(names.EVALUATION_EVENT, guardwire__session__id=session_id)
        assert (event.item.trace_id, event.item.span_id) == (trace_id(answers), stream.item.span_id)
    assert children(sink, span) == [names.STREAM_SPAN] * 2


async def test_streams_of_other_traces_meet_in_the_calls(
    observed: RunningServer, sink: OtlpSink, spans: RecordedSpans
) -> None:
    """What the server does for a stream is in the trace of the call; the client's link leads there."""
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        with spans.tracer.start_as_current_span("answer"):
            session_id = await judge(many.moderate("hello"))
    (call,), (answer,), (ours,) = (spans.named(name) for name in ("ModerateStreams", "answer", "guardwire.stream"))
    stream = await sink.span(names.STREAM_SPAN, guardwire__session__id=session_id)
    assert trace_id(ours) == trace_id(answer) != trace_id(call) == stream.item.trace_id
    (link,) = ours.links
    assert link.context.span_id == span_id(call)
    assert (await served(sink, call)).item.span_id == stream.item.parent_span_id


# --- calls that do not succeed ---------------------------------------------------------------------------------------


async def failed_step(server: RunningServer, client: AsyncClient) -> None:
    server.gen_gate.fail()
    await client.classify("hello")


async def push_no_token(server: RunningServer, client: AsyncClient) -> None:
    await judge(client.moderate("hello"), [SAFE_ID, NO_TOKEN_ID])


async def too_many_streams(server: RunningServer, client: AsyncClient) -> None:
    async with client.moderate_many() as many:
        for _ in range(server.config.max_sessions):
            await many.moderate("hello")
        await client.moderate("hello")


@pytest.mark.parametrize(
    ("way", "method", "code", "reason"),
    [
        (lambda _, client: client.classify("hello", policy="none"), "Classify", "NOT_FOUND", "unknown_policy"),
        (lambda _, client: client.classify("hello " * 100), "Classify", "INVALID_ARGUMENT", "content_too_large"),
        (failed_step, "Classify", "INTERNAL", "step_failed"),
        (lambda _, client: client.moderate("hello", policy="none"), "ModerateStream", "NOT_FOUND", "unknown_policy"),
        (push_no_token, "ModerateStream", "INVALID_ARGUMENT", "token_id_beyond_vocabulary"),
        (too_many_streams, "ModerateStream", "RESOURCE_EXHAUSTED", "too_many_sessions"),
    ],
)
async def test_a_failure_is_the_same_on_both_sides(
    observed: RunningServer, sink: OtlpSink, spans: RecordedSpans, way: Way, method: str, code: str, reason: str
) -> None:
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client:
        with pytest.raises(GuardwireError):
            await way(observed, client)
    (call,) = spans.named(method)
    assert outcome(call) == (code, code)  # an error of whoever called
    span = await served(sink, call)
    is_fault = code == "INTERNAL"
    assert span.item.status.code == (Status.STATUS_CODE_ERROR if is_fault else Status.STATUS_CODE_UNSET)
    told = dict(call.attributes or {})
    assert told[names.REASON] == span.attributes[names.REASON] == reason
    assert told.get(names.REQUEST_ID) == span.attributes.get(names.REQUEST_ID)
    assert (names.REQUEST_ID in told) == is_fault


async def test_a_refusal_of_a_thread(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans) -> None:
    def use() -> None:
        with Client(observed.address, tracer_provider=spans.provider) as client:
            with pytest.raises(GuardwireError):
                client.classify("hello", policy="none")
            with pytest.raises(GuardwireError), client.moderate("hello", policy="none"):
                pass

    await asyncio.to_thread(use)
    for method in ("Classify", "ModerateStream"):
        (call,) = spans.named(method)
        assert outcome(call) == ("NOT_FOUND", "NOT_FOUND")
        assert (await served(sink, call)).attributes[names.REASON] == "unknown_policy"


async def test_a_refused_stream_among_many(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans) -> None:
    observed.stream_gate.substitute(ScriptedModel())
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        with pytest.raises(GuardwireError):
            await judge(many.moderate("hello"), [SAFE_ID, NO_TOKEN_ID])
        await judge(many.moderate("hello"))
    first, second = spans.named("guardwire.stream")
    (call,) = spans.named("ModerateStreams")
    assert [outcome(span)[0] for span in (first, second, call)] == ["INVALID_ARGUMENT", "OK", "OK"]
    await served(sink, call)
    for ours, end_reason in ((first, (first.attributes or {})[names.REASON]), (second, "finished")):
        session_id = (ours.attributes or {})[names.SESSION_ID]
        theirs = await sink.span(names.STREAM_SPAN, guardwire__session__id=session_id)
        assert theirs.attributes[names.END_REASON] == end_reason


async def test_a_stream_that_is_left(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans) -> None:
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client:
        async with client.moderate("hello"):
            pass
        (call,) = spans.named("ModerateStream")
        assert outcome(call) == ("CANCELLED", None)
        span = await served(sink, call)
    assert span.item.status.code == Status.STATUS_CODE_UNSET
    assert span.attributes[names.END_REASON] == "abandoned"


async def test_a_deadline_that_passes(observed: RunningServer, sink: OtlpSink, spans: RecordedSpans) -> None:
    observed.gen_gate.hold()
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client:
        await client.server_info()  # connects, which is not to take the time of the call
        with pytest.raises(GuardwireError):
            await client.classify("hello", timeout_s=0.5)
    (call,) = spans.named("Classify")
    assert outcome(call) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert (await served(sink, call)).item.status.code == Status.STATUS_CODE_ERROR


# --- calls that nobody traces ----------------------------------------------------------------------------------------


@BOTH_KINDS
async def test_a_client_that_does_not_sample_makes_no_spans(
    observed: RunningServer, sink: OtlpSink, spans: RecordedSpans, kind: Kind
) -> None:
    observed.stream_gate.substitute(ScriptedModel())
    unsampled = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    callers = [await run(kind, observed.address, unsampled, use) for use in (CLASSIFY, MODERATE)]
    for method in ("Classify", "ModerateStream"):
        call = {names.RPC_SYSTEM: "grpc", names.RPC_METHOD: f"{SERVICE}/{method}", names.RPC_STATUS: "OK"}
        await sink.point(names.CALL_DURATION, at_least=1, **call)  # recorded when the call's span would have ended
    async with AsyncClient(observed.address, tracer_provider=spans.provider) as client:
        await client.server_info()
    (sampled,) = spans.named("GetServerInfo")
    span = await served(sink, sampled)  # spans are exported in the order in which they end
    assert [other.item.name for other in sink.spans if other.item.name != names.STEP_SPAN] == [span.item.name]
    assert not [other for other in sink.spans if other.item.links]
    await sink.log(names.EVALUATION_EVENT, guardwire__token_index=2)  # the stream's, which came last
    events = [log.item for log in sink.logs if log.item.event_name == names.EVALUATION_EVENT]
    assert [(event.trace_id, event.flags & 1) for event in events] == [(caller, 0) for caller in callers]
