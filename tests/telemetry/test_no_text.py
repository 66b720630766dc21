"""Nothing that a caller says gets into telemetry: texts, token ids, names and metadata are planted and searched for."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from guardwire.v1 import moderation_pb2 as pb
from guardwire.v1 import moderation_pb2_grpc as pb_grpc
from guardwire_server.telemetry import names
from guardwire_server.telemetry.logs import configure_logging
from tests.access.access_file import AccessFile, key_entry
from tests.rpc.keyed import outcome
from tests.rpc.many_call import ManyCall
from tests.rpc.messages import (
    assistant,
    finish,
    opening,
    system,
    templated_opening,
    text,
    tokens,
    user,
    user_tokens,
    user_turn,
)
from tests.rpc.running_server import RunningServer, StartServer
from tests.rpc.scripted_model import ScriptedModel
from tests.rpc.stream_call import WAIT_S, StreamCall
from tests.telemetry.conftest import SHUTDOWN_TIMEOUT_S, StartTelemetry, recording_into
from tests.telemetry.markers import MARKED_IDS, UNKNOWN_ID, find_markers, find_markers_in, marker
from tests.telemetry.metrics_page import fetch
from tests.telemetry.otlp_sink import OtlpSink

SERVICE = "guardwire.v1.ModerationService"

KEY = f"gw_{marker('key')}"
METADATA = (
    ("x-note", marker("metadata")),
    ("x-note-bin", marker("binary metadata").encode()),
    ("authorization", f"Bearer {KEY}"),
    ("baggage", f"note={marker('baggage')}"),
    ("grpc-trace-bin", marker("binary trace").encode()),
    ("traceparent", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"),
    # No `tracestate`: what a caller's tracer writes there is meant for telemetry, and goes on with the trace.
)
CHANNEL_OPTIONS = (
    ("grpc.primary_user_agent", marker("user-agent")),
    ("grpc.default_authority", marker("authority").lower()),
)


class MarkedStub:
    """The stub of a channel; every call of it carries the metadata."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = pb_grpc.ModerationServiceStub(channel)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        multicallable = getattr(self._stub, method)
        return lambda *request, **options: multicallable(*request, metadata=METADATA, **options)


@contextlib.contextmanager
def ends_somehow() -> Iterator[None]:
    """Lets a call fail: how is for other tests."""
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        yield


async def run_stream(server: RunningServer, *requests: pb.ModerateStreamRequest) -> StreamCall:
    """Runs a stream to its end, whatever that is."""
    async with server.stream() as call:
        with ends_somehow():
            await call.run(*requests)
    return call


async def classify(server: RunningServer) -> None:
    conversation = [system(marker("system")), user(marker("user")), assistant(marker("assistant"))]
    response = await server.stub.Classify(pb.ClassifyRequest(messages=conversation), timeout=WAIT_S)
    assert response.model
    requests = [
        pb.ClassifyRequest(messages=conversation, model=marker("model")),
        pb.ClassifyRequest(messages=conversation, policy=marker("policy")),
        pb.ClassifyRequest(messages=[user(marker("too large") * 100)]),
        pb.ClassifyRequest(messages=[assistant(marker("out of turn"))]),
    ]
    for request in requests:
        with ends_somehow():
            await server.stub.Classify(request, timeout=WAIT_S)


async def push_text(server: RunningServer) -> None:
    conversation = [system(marker("system")), user(marker("user"))]
    begin = opening(conversation, input=pb.INPUT_KIND_TEXT)
    says = [text(f"{marker('text')} and more. "), text(marker("flushed"), flush=True), user_turn(marker("next turn"))]
    call = await run_stream(server, begin, *says, text(marker("second answer")))
    assert call.received.summary
    await run_stream(server, begin, text(marker("too large") * 100))
    await run_stream(server, begin, user_turn(marker("too large") * 100))
    await run_stream(server, opening(conversation), text(marker("text where tokens belong")))


async def name_things(server: RunningServer) -> None:
    for field in ("tokenizer_fingerprint", "model", "policy"):
        options: dict[str, Any] = {field: marker(field)}
        await run_stream(server, opening(**options))
    channel: Any = server.channel
    health, reflection = health_pb2_grpc.HealthStub(channel), reflection_pb2_grpc.ServerReflectionStub(channel)
    with ends_somehow():
        await health.Check(health_pb2.HealthCheckRequest(service=marker("health")), metadata=METADATA)
    for method in (f"/{SERVICE}/{marker('method')}", f"/{marker('service')}/Classify"):
        with ends_somehow():
            await channel.unary_unary(method)(b"", metadata=METADATA, timeout=WAIT_S)
    query = reflection_pb2.ServerReflectionRequest(file_containing_symbol=marker("symbol"))
    with ends_somehow():
        async for _ in reflection.ServerReflectionInfo(iter([query]), metadata=METADATA, timeout=WAIT_S):
            pass


async def knock(server: RunningServer) -> None:
    """Calls that are not let in."""
    token = ".".join(marker(part) for part in ("header", "claims", "signature"))
    for credential in (f"Bearer gw_{marker('wrong key')}", f"Bearer {token}", f"Basic {marker('password')}", KEY):
        failure = await outcome(server.channel, f"/{SERVICE}/Classify", (("authorization", credential),), b"")
        assert failure
        assert failure.code is grpc.StatusCode.UNAUTHENTICATED


async def push_ids(server: RunningServer) -> None:
    """The marked ids are judged unsafe, so that there are decisions; an unknown id ends a stream with one."""
    call = await run_stream(server, opening(), tokens(MARKED_IDS), user_tokens(MARKED_IDS), tokens(MARKED_IDS))
    assert pb.ACTION_BLOCK in [decision.action for decision in call.received.decisions]
    await run_stream(server, templated_opening(MARKED_IDS))
    await run_stream(server, templated_opening([UNKNOWN_ID]))
    await run_stream(server, opening(), tokens([1, UNKNOWN_ID]))
    await run_stream(server, opening(), tokens([1]), user_tokens([UNKNOWN_ID]))


async def push_many(server: RunningServer) -> None:
    async with ManyCall(server) as call:
        await call.send((1, opening()), (2, opening([user(marker("of many"))], input=pb.INPUT_KIND_TEXT)))
        await call.send((2, text(marker("text of many"))), (3, opening(model=marker("model of many"))))
        for token_id in (*MARKED_IDS, UNKNOWN_ID):
            await call.send_step((1, token_id))
        await call.send((2, finish()))
        await call.read_until(call.has_ended(1, 2, 3))


async def leave(server: RunningServer) -> None:
    """Streams that are cancelled, abandoned and expired with text in them."""
    begin = opening([user(marker("left"))], input=pb.INPUT_KIND_TEXT)
    async with server.stream() as cancelled, server.stream() as abandoned, server.stream(timeout_s=1.0) as expired:
        for call in (cancelled, abandoned, expired):
            await call.send(begin)
            await call.read_until("prompt_verdict")
            await call.send(text(marker("left in the middle")))
        cancelled.cancel()
        await abandoned.half_close()
        for call in (abandoned, expired):
            with ends_somehow():
                await call.read_all()
    await server.settled()


async def meet_faults(server: RunningServer) -> None:
    """Steps that fail while they judge marked text."""
    async with server.stream() as call:
        await call.send(opening([user(marker("fault"))], input=pb.INPUT_KIND_TEXT))
        await call.read_until("prompt_verdict")
        server.stream_gate.fail()
        with ends_somehow():
            await call.run(text(marker("text of a failed step"), flush=True))
    server.gen_gate.fail()
    with ends_somehow():
        await server.stub.Classify(pb.ClassifyRequest(messages=[user(marker("classified by a failed step"))]))


async def send_garbage(server: RunningServer) -> None:
    """Bytes that are no messages, and messages whose text is no UTF-8."""
    no_message = b"\x0a\xff" + marker("garbage").encode()
    content = marker("no utf-8").encode() + b"\xff"
    no_utf8 = b"\x0a" + bytes([len(content) + 4]) + b"\x08\x02\x12" + bytes([len(content)]) + content
    channel: Any = server.channel  # of bytes
    for garbage in (no_message, no_utf8):
        for method in ("Classify", "GetServerInfo"):
            with ends_somehow():
                await channel.unary_unary(f"/{SERVICE}/{method}")(garbage, metadata=METADATA, timeout=WAIT_S)
        for method in ("ModerateStream", "ModerateStreams"):
            call = channel.stream_stream(f"/{SERVICE}/{method}")(iter([garbage]), metadata=METADATA, timeout=WAIT_S)
            with ends_somehow():
                async for _ in call:
                    pass


async def visit(server: RunningServer) -> None:
    """Makes calls of every kind, with markers wherever a caller can say something."""
    async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        server.stub, own_stub = MarkedStub(channel), server.stub  # type: ignore[assignment]
        own_channel, server.channel = server.channel, channel
        try:
            for calls in (classify, push_text, name_things, leave, meet_faults, send_garbage, knock):
                await calls(server)
            server.stream_gate.substitute(ScriptedModel())
            for calls in (push_ids, push_many):
                await calls(server)
            await server.settled()
        finally:
            server.stub, server.channel = own_stub, own_channel


@pytest.fixture
def log_lines(restored_logging: None) -> io.StringIO:
    """All that is logged, in all detail."""
    stream = io.StringIO()
    configure_logging("json", "debug", stream)
    return stream


async def test_nothing_that_a_caller_says_gets_out(
    sink: OtlpSink,
    start_telemetry: StartTelemetry,
    start_server: StartServer,
    log_lines: io.StringIO,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    access = AccessFile(tmp_path / "access.yaml", keys=[key_entry("acme-1", "acme", KEY)])
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint, metrics_listen="127.0.0.1:0")
    server = await start_server(telemetry=recording_into(telemetry), access_file=access.write(), reflection=True)
    await visit(server)
    page = await asyncio.to_thread(fetch, telemetry)
    await server.stop()
    await asyncio.to_thread(telemetry.shutdown, SHUTDOWN_TIMEOUT_S)
    printed = capfd.readouterr()

    # There is something to search in.
    for method in ("Classify", "ModerateStream", "ModerateStreams"):
        assert await sink.span(f"{SERVICE}/{method}")
    for name in (names.STEP_SPAN, names.PREFILL_SPAN, names.DECISION_SPAN):
        assert await sink.span(name)
    assert await sink.log(names.EVALUATION_EVENT, guardwire__action="block", gen_ai__evaluation__score__label="unsafe")
    assert await sink.log(names.EVALUATION_EVENT, error__type="not_judged", guardwire__tenant="acme")
    for name in (names.CALL_DURATION, names.DECISIONS, names.REJECTIONS, names.SESSIONS_ENDED, names.TOKENS_JUDGED):
        assert await sink.metric(name)
    assert "guardwire_token_judged_total" in page
    assert "the device is on fire" in log_lines.getvalue()
    assert await sink.log(body="step failed")

    leaks = [(type(message).__name__, leak) for message in sink.messages for leak in find_markers_in(message)]
    for source, content in (
        ("the page of metrics", page),
        ("the log", log_lines.getvalue()),
        ("what is printed", printed.err + printed.out),
    ):
        leaks += [(source, leak) for leak in find_markers(content)]
    assert leaks == []
