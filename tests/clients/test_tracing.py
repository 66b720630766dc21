"""What a traced call leaves behind, and what it carries to the server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, NoOpTracerProvider, SpanContext, SpanKind, TraceFlags, TraceState

from guardwire import AsyncClient, Client, GuardwireError, InputKind
from tests.clients.command import environment
from tests.clients.fake_server import Failure, FakeServer
from tests.clients.reading import BOMB, SKY, read
from tests.clients.recorded_spans import SERVICE, RecordedSpans, attributes, outcome, span_id

MARKER, MARKED_ID = "xyzzy-plugh", 16_180_339


async def moderate(client: AsyncClient) -> None:
    async with client.moderate("hello") as stream:
        await stream.push([SKY])
        await stream.finish()
        await read(stream)


async def moderate_many(client: AsyncClient) -> None:
    async with client.moderate_many() as many, many.moderate("hello") as stream:
        await stream.finish()
        await read(stream)


def moderate_in_thread(client: Client) -> None:
    with client.moderate("hello") as stream:
        stream.push([SKY])
        stream.finish()
        list(stream)


CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "Classify": lambda client: client.classify("hello"),
    "GetServerInfo": lambda client: client.server_info(),
    "GetTokenizer": lambda client: client.tokenizer_json(),
    "ModerateStream": moderate,
    "ModerateStreams": moderate_many,
}

SYNC_CALLS: dict[str, Callable[[Client], object]] = {
    "Classify": lambda client: client.classify("hello"),
    "GetServerInfo": lambda client: client.server_info(),
    "GetTokenizer": lambda client: client.tokenizer_json(),
    "ModerateStream": moderate_in_thread,
}


async def make_call(kind: type[AsyncClient | Client], method: str, target: str, spans: RecordedSpans) -> None:
    """Makes one call, under a span of the caller's own."""
    if kind is AsyncClient:
        async with AsyncClient(target, tracer_provider=spans.provider) as client:
            with spans.tracer.start_as_current_span("answer"):
                await CALLS[method](client)
        return

    def use() -> None:
        with (
            Client(target, tracer_provider=spans.provider) as client,
            spans.tracer.start_as_current_span("answer"),
        ):
            SYNC_CALLS[method](client)

    await asyncio.to_thread(use)


@pytest.mark.parametrize(
    ("kind", "method"), [*((AsyncClient, method) for method in CALLS), *((Client, method) for method in SYNC_CALLS)]
)
async def test_every_call_is_a_child_of_the_callers_span_and_the_servers_parent(
    fake: FakeServer, target: str, spans: RecordedSpans, kind: type[AsyncClient | Client], method: str
) -> None:
    await make_call(kind, method, target, spans)
    (call,) = spans.named(method)
    (answer,) = spans.named("answer")
    assert (call.name, call.kind, outcome(call)) == (f"{SERVICE}/{method}", SpanKind.CLIENT, ("OK", None))
    told = dict(call.attributes or {})
    host, _, port = target.rpartition(":")
    assert (told["rpc.system.name"], told["rpc.method"]) == ("grpc", f"{SERVICE}/{method}")
    assert (told["server.address"], told["server.port"]) == (host, int(port))
    assert call.parent is not None
    assert call.parent.span_id == span_id(answer)
    assert call.context is not None
    told_server = f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-{call.context.trace_flags:02x}"
    assert (fake.metadata["traceparent"], call.context.trace_flags.sampled) == (told_server, True)


async def test_the_totals_of_a_stream(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        async with client.moderate("hello") as stream:
            await stream.push([SKY] * 20)
            await stream.rollback(5)
            await stream.push([BOMB, BOMB])
            await stream.user_turn("hello")  # the decision was about the answer before it
            await stream.finish()
            await read(stream)
        assert attributes(spans.only(), "rpc.system.name", "rpc.method", "rpc.response.status_code") == {
            "guardwire.num_tokens": 22,
            "guardwire.num_verdicts": 22,
            "guardwire.session.id": "fake-1",
            "guardwire.action": "allow",
        }


@pytest.mark.parametrize("end_on_block", [False, True])
async def test_the_decision_of_a_stream(target: str, spans: RecordedSpans, end_on_block: bool) -> None:
    async with (
        AsyncClient(target, tracer_provider=spans.provider) as client,
        client.moderate("hello", input=InputKind.TEXT, end_on_block=end_on_block) as stream,
    ):
        await stream.push_text("the bomb boom is blue", flush=True)
        while not stream.blocked:
            await anext(stream)
        if end_on_block:
            await read(stream)
    told = attributes(spans.only())
    assert (told["guardwire.action"], "guardwire.num_tokens" in told) == ("block", False)  # the server counts
    assert outcome(spans.only()) == (("OK", None) if end_on_block else ("CANCELLED", None))


async def test_context_travels_with_the_callers_own_metadata(fake: FakeServer, target: str) -> None:
    caller = SpanContext(7, 9, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "x")]))
    there = trace.set_span_in_context(NonRecordingSpan(caller), baggage.set_baggage("shop", "tea"))
    own: list[tuple[str, str | bytes]] = [("authorization", "Bearer x"), ("baggage", "mine=1"), ("key-bin", b"\x00")]
    token = context.attach(there)
    try:
        async with AsyncClient(target, metadata=own, tracer_provider=NoOpTracerProvider()) as client:
            await client.classify("hello")  # nobody records here, and the caller's trace goes on all the same
        told = {key: value for key, value in fake.metadata.items() if key != "user-agent"}
        assert told == {**dict(own), "traceparent": f"00-{7:032x}-{9:016x}-01", "tracestate": "vendor=x"}
        async with AsyncClient(target, tracer_provider=NoOpTracerProvider()) as client:
            await moderate(client)
        assert fake.metadata["baggage"] == "shop=tea"
    finally:
        context.detach(token)


async def test_calls_that_are_not_sampled_say_so(fake: FakeServer, target: str) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    async with AsyncClient(target, tracer_provider=provider) as client:
        for call in CALLS.values():
            await call(client)
            flags = str(fake.metadata["traceparent"]).rpartition("-")[2]
            assert not TraceFlags(int(flags, 16)).sampled


async def test_the_reason_of_a_failure(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    reason = error_details_pb2.ErrorInfo(domain="guardwire", reason="STEP_FAILED")
    fake.failure = Failure(grpc.StatusCode.INTERNAL, MARKER, (reason, error_details_pb2.RequestInfo(request_id="r-1")))
    async with AsyncClient(target, tracer_provider=spans.provider) as client:
        with pytest.raises(GuardwireError):
            await client.classify("hello")
    assert outcome(spans.only()) == ("INTERNAL", "INTERNAL")
    told = attributes(spans.only())
    assert (told["guardwire.reason"], told["guardwire.request_id"]) == ("step_failed", "r-1")


async def test_no_text_and_no_token_ids(fake: FakeServer, target: str, spans: RecordedSpans) -> None:
    def use() -> None:
        with Client(target, tracer_provider=spans.provider) as client:
            with client.moderate(MARKER, input=InputKind.TEXT) as stream:
                stream.push_text(f"{MARKER} bomb boom")
                stream.user_turn(MARKER)
                stream.finish()
                list(stream)
            client.classify(MARKER)

    await asyncio.to_thread(use)
    async with AsyncClient(target, tracer_provider=spans.provider) as client, client.moderate_many() as many:
        async with many.moderate(token_ids=[MARKED_ID]) as stream:
            await stream.push([MARKED_ID])
            await stream.push([MARKED_ID, MARKED_ID])
            await stream.finish()
            await read(stream)
        fake.failure, fake.fails_after = Failure(grpc.StatusCode.INVALID_ARGUMENT, f"not {MARKER}"), 1
        with pytest.raises(GuardwireError):
            await many.moderate(MARKER)
    told = [span.to_json() for span in spans.ended()]
    assert len(told) == 5
    assert not [span for span in told if MARKER in span or str(MARKED_ID) in span]


WITHOUT_OPENTELEMETRY = """
import asyncio, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from guardwire import AsyncClient, Client

async def main(target):
    async with AsyncClient(target, metadata=[("own", "kept")]) as client:
        print((await client.classify("bomb")).action.name)
        async with client.moderate_many() as many, many.moderate("hello") as stream:
            await stream.finish()
            print([type(update).__name__ async for update in stream])

def in_thread(target):
    with Client(target) as client, client.moderate("hello") as stream:
        stream.finish()
        print([type(update).__name__ for update in stream])

asyncio.run(main(sys.argv[1]))
in_thread(sys.argv[1])
assert not [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]
"""


async def test_without_opentelemetry_the_client_is_what_it_was(fake: FakeServer, target: str) -> None:
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", WITHOUT_OPENTELEMETRY, target],
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        timeout=60,
        check=False,
    )
    told = "['PromptVerdict', 'Summary']"
    assert (ran.returncode, ran.stderr, ran.stdout.splitlines()) == (0, "", ["BLOCK", told, told])
    assert "traceparent" not in fake.metadata
