"""What a traced stream's spans hold, and how engine steps are linked to them."""

from array import array

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.trace import SpanContext, TraceFlags

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.observation import StepReport
from guardwire_server.core.step_plan import Chunk, StepPlan
from guardwire_server.telemetry import names
from guardwire_server.telemetry.instruments import Instruments
from guardwire_server.telemetry.steps import MAX_LINKS, StepTelemetry
from tests.rpc.messages import answer_ids, finish, opening, rollback, tokens
from tests.rpc.running_server import RunningServer
from tests.rpc.scripted_model import SAFE_ID, UNSAFE_ID, ScriptedModel
from tests.telemetry.conftest import StartTelemetry
from tests.telemetry.otlp_sink import OtlpSink

STREAM = "guardwire.v1.ModerationService/ModerateStream"


async def test_a_streams_steps_and_reading_belong_to_its_call(observed: RunningServer, sink: OtlpSink) -> None:
    async with observed.stream() as call:
        received = await call.run(opening(), tokens(answer_ids(3)))
    span = await sink.span(STREAM)
    reading = await sink.span(names.PREFILL_SPAN)
    assert reading.item.parent_span_id == span.item.span_id
    assert reading.attributes["guardwire.num_prompt_tokens"] == span.attributes["guardwire.num_prompt_tokens"]
    assert received.opened
    assert span.attributes["guardwire.session.id"] == received.opened.session_id
    assert span.attributes["guardwire.policy"] == "default"
    linked = [step.item for step in sink.spans if step.item.name == names.STEP_SPAN and step.item.links]
    assert linked
    for step in linked:
        (link,) = step.links
        assert (link.trace_id, link.span_id) == (span.item.trace_id, span.item.span_id)
        assert not step.parent_span_id
        assert step.kind == Span.SPAN_KIND_INTERNAL


async def test_every_rise_of_a_decision_is_a_span_an_event_and_a_count(observed: RunningServer, sink: OtlpSink) -> None:
    observed.stream_gate.substitute(ScriptedModel())
    async with observed.stream() as call:
        await call.send(opening(), tokens([SAFE_ID, UNSAFE_ID, UNSAFE_ID]))
        await call.read_until("decision")
        await call.send(rollback(1), tokens([SAFE_ID, SAFE_ID, UNSAFE_ID, UNSAFE_ID]), finish())
        await call.read_all()
    parent = await sink.span(STREAM)
    for token_index, cut_index in ((2, 1), (4, 3)):
        span = await sink.span(names.DECISION_SPAN, guardwire__token_index=token_index, guardwire__cut_index=cut_index)
        assert span.item.parent_span_id == parent.item.span_id
        event = await sink.log(
            names.EVALUATION_EVENT, guardwire__token_index=token_index, guardwire__cut_index=cut_index
        )
        assert (event.item.trace_id, event.item.span_id) == (parent.item.trace_id, parent.item.span_id)
        for attributes in (span.attributes, event.attributes):
            assert attributes["guardwire.action"] == "block"
            assert attributes["guardwire.category"] == "violent"
            assert attributes["guardwire.role"] == "assistant"
    counted = await sink.point(
        names.DECISIONS,
        at_least=2,
        guardwire__action="block",
        guardwire__category="violent",
        guardwire__role="assistant",
        guardwire__risk_level="unsafe",
        guardwire__enforced=True,
    )
    assert counted.value == 2


async def test_a_classify_call_is_an_event(observed: RunningServer, sink: OtlpSink) -> None:
    response = await observed.stub.Classify(pb.ClassifyRequest(messages=[pb.Message(role=pb.ROLE_USER, content="Hi")]))
    assert not response.judged  # random weights: what was not judged is told as such
    span = await sink.span("guardwire.v1.ModerationService/Classify")
    event = await sink.log(names.EVALUATION_EVENT, guardwire__action="block")
    assert event.item.span_id == span.item.span_id
    assert span.attributes["guardwire.action"] == "block"
    assert "safe" not in [str(value) for value in event.attributes.values()]


def report(*seq_ids: int, model_kind: str = "stream", has_failed: bool = False) -> StepReport:
    chunks = tuple(Chunk(seq_id, 0, 0, array("i", [5]), b"\1", Extent(0, 64)) for seq_id in seq_ids)
    return StepReport(model_kind, 0.5, 0.1, StepPlan((), chunks), has_failed)


class TracedSteps:
    """Step telemetry whose spans a collector gets; a step is traced if the next of `draws` is below the ratio."""

    def __init__(self, start_telemetry: StartTelemetry, sink: OtlpSink, *draws: float, ratio: float = 0.5) -> None:
        telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
        instruments = Instruments(telemetry.meter_provider.get_meter("test"))
        left = list(draws)
        self.steps = StepTelemetry(
            instruments, telemetry.tracer_provider.get_tracer("test"), ratio, draw=lambda: left.pop(0)
        )


def context(number: int) -> SpanContext:
    return SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))


async def test_a_share_of_the_steps_is_traced_and_all_are_measured(
    sink: OtlpSink, start_telemetry: StartTelemetry
) -> None:
    traced = TracedSteps(start_telemetry, sink, 0.9, 0.4, 0.5)
    for seq_ids in ((1,), (1, 2), (1, 2, 3)):
        traced.steps.step_done(report(*seq_ids))
    point = await sink.point(names.STEP_SEQUENCES, at_least=3, guardwire__model__kind="stream")
    assert point.count == 3
    await sink.span(names.STEP_SPAN, guardwire__num_sequences=2)
    assert len(sink.spans) == 1


async def test_links_are_bounded_and_only_to_streams_that_are_traced_now(
    sink: OtlpSink, start_telemetry: StartTelemetry
) -> None:
    traced = TracedSteps(start_telemetry, sink, 0.0, 0.0, 0.0)
    for number in range(1, MAX_LINKS + 10):
        traced.steps.link(number, context(number))
    traced.steps.unlink(1)
    traced.steps.step_done(report(1, 2, 9999))
    few = await sink.span(names.STEP_SPAN, guardwire__num_sequences=3)
    assert [link.span_id for link in few.item.links] == [(2).to_bytes(8, "big")]
    traced.steps.step_done(report(*range(1, MAX_LINKS + 10)))
    many = await sink.span(names.STEP_SPAN, guardwire__num_sequences=MAX_LINKS + 9)
    assert len(many.item.links) == MAX_LINKS
    traced.steps.step_done(report(2, model_kind="gen"))  # another engine's sequences have the same numbers
    other = await sink.span(names.STEP_SPAN, guardwire__model__kind="gen")
    assert not other.item.links


@pytest.mark.parametrize("has_failed", [False, True])
async def test_a_step_that_failed_is_an_error(
    sink: OtlpSink, start_telemetry: StartTelemetry, has_failed: bool
) -> None:
    traced = TracedSteps(start_telemetry, sink, 0.0)
    traced.steps.step_done(report(1, has_failed=has_failed))
    span = await sink.span(names.STEP_SPAN)
    assert span.item.status.code == (Status.STATUS_CODE_ERROR if has_failed else Status.STATUS_CODE_UNSET)
    assert span.item.end_time_unix_nano - span.item.start_time_unix_nano == 500_000_000


async def test_without_a_ratio_nothing_is_drawn(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    traced = TracedSteps(start_telemetry, sink, ratio=0.0)
    traced.steps.link(1, context(1))
    traced.steps.step_done(report(1))
    await sink.point(names.STEP_TOKENS, at_least=1, guardwire__model__kind="stream")
    assert not sink.spans
