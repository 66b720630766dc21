"""A call that many streams share has one span; each stream has one where its caller's trace is."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from opentelemetry.trace import SpanKind

from guardwire import AsyncClient, DeadlineExceeded, GuardwireError, InputKind, InvalidRequest, Overloaded
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.reading import BOMB, SKY, push_forever, read
from tests.clients.recorded_spans import RecordedSpans, attributes, outcome, span_id


async def test_streams_are_where_their_callers_are(target: str, spans: RecordedSpans) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        with spans.tracer.start_as_current_span("answer") as answer:
            async with many.moderate("hello") as stream:
                await stream.push([SKY])
                await stream.push([SKY, BOMB, BOMB])
                await stream.finish()
                await read(stream)
        async with many.moderate("hello", input=InputKind.TEXT) as stream:  # nobody traces around it
            await stream.push_text("sky", flush=True)
            await stream.finish()
            await read(stream)
    first, second = spans.named("guardwire.stream")
    (call,) = spans.named("ModerateStreams")
    assert [span.kind for span in (call, first, second)] == [SpanKind.CLIENT, SpanKind.INTERNAL, SpanKind.INTERNAL]
    assert call.parent is None
    assert first.parent is not None
    assert (first.parent.span_id, [link.context.span_id for link in first.links]) == (
        answer.get_span_context().span_id,
        [span_id(call)],
    )
    assert second.parent is not None
    assert (second.parent.span_id, list(second.links)) == (span_id(call), [])
    told = {"rpc.response.status_code": "OK", "guardwire.session.id": "fake-1"}
    assert attributes(first) == {
        **told,
        "guardwire.num_tokens": 4,
        "guardwire.num_verdicts": 4,
        "guardwire.action": "block",
    }
    assert attributes(second) == {**told, "guardwire.num_verdicts": 1, "guardwire.action": "allow"}
    assert attributes(call, "rpc.system.name", "rpc.method") == {
        "rpc.response.status_code": "OK",
        "guardwire.stream.count": 2,
        "guardwire.num_tokens": 4,
        "guardwire.num_verdicts": 5,
    }


async def test_streams_end_apart(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        async with many.moderate("hello", input=InputKind.TEXT) as failing:
            await failing.rollback(7)
            with pytest.raises(InvalidRequest):
                await read(failing)
        async with many.moderate("hello"):
            pass  # left before its end
        async with many.moderate("hello", timeout_s=0.05) as late:
            with pytest.raises(DeadlineExceeded):
                await read(late)
        assert [outcome(span) for span in spans.named("guardwire.stream")] == [
            ("OUT_OF_RANGE", "OUT_OF_RANGE"),
            ("CANCELLED", None),
            ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ]
        assert attributes(spans.ended()[0])["guardwire.reason"] == "refused"
        assert not spans.named("ModerateStreams")
    (call,) = spans.named("ModerateStreams")
    assert (outcome(call)[1], attributes(call)["guardwire.stream.count"]) == (None, 3)


async def test_the_end_of_the_call_is_everyones(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    fake.failure, fake.fails_after = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), 3
    async with AsyncClient(target, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        first, _ = await asyncio.gather(many.moderate("hello"), many.moderate("hello"))
        with pytest.raises(Overloaded):
            await push_forever(first, [SKY])
        with pytest.raises(Overloaded):
            await many.moderate("hello")  # too late: it never was a stream of the call
    ended = spans.named("guardwire.stream")
    (call,) = spans.named("ModerateStreams")
    assert [outcome(span) for span in (*ended, call)] == [("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED")] * 4
    assert attributes(call)["guardwire.stream.count"] == 2


async def test_a_call_that_is_left(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    async def moderate(client: AsyncClient) -> None:
        async with client.moderate_many() as many:
            await many.moderate("hello")
            raise ZeroDivisionError

    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        with pytest.raises(ZeroDivisionError):
            await moderate(client)
        (stream,) = spans.named("guardwire.stream")
        (call,) = spans.named("ModerateStreams")
        assert [outcome(stream), outcome(call)] == [("CANCELLED", None)] * 2
        fake.silent, fake.fails_after = True, 0
        async with client.moderate_many(timeout_s=0.1) as many:
            with pytest.raises(GuardwireError):
                await many.moderate("hello")
        assert [outcome(span) for span in spans.ended()[2:]] == [("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")] * 2


async def test_a_call_that_cannot_be_started(target: str, spans: RecordedSpans) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        await client.server_info()
        await client.close()
        with pytest.raises(Exception, match="closed"):
            await client.moderate_many().__aenter__()
    (call,) = spans.named("ModerateStreams")
    assert outcome(call) == (None, "grpc._cython.cygrpc.UsageError")
