"""Evaluation events: names and attributes of the conventions, and the span that they are given."""

import pytest

from guardwire_server.core.policy import (
    BUILT_IN_POLICIES,
    Action,
    AnswerJudge,
    Decision,
    DecisionReason,
    decide_prompt,
)
from guardwire_server.core.verdict import Category, RiskLevel, RiskProbabilities, Role, Verdict
from guardwire_server.telemetry.evaluations import Evaluated, Evaluation, EvaluationEvents
from guardwire_server.telemetry.names import EVALUATION_EVENT
from tests.telemetry.conftest import VERSION, StartTelemetry
from tests.telemetry.otlp_sink import OtlpSink, Received

EVALUATED = Evaluated(policy="default", model="Qwen3Guard-Stream-0.6B", session_id="0123456789abcdef", tenant="acme")
UNSAFE = Verdict(RiskLevel.UNSAFE, Category.VIOLENT, RiskProbabilities(0.1, 0.15, 0.75), 0.9)
NOT_JUDGED = Decision(
    action=Action.BLOCK,
    role=Role.ASSISTANT,
    turn=0,
    token_index=7,
    cut_index=7,
    risk_level=None,
    category=None,
    reason=DecisionReason.NOT_JUDGED,
    explanation="not judged: tokens.token_ids[0]: 3141592653 is not a token; policy 'default' says BLOCK",
)


def answer_decision() -> Decision:
    judge = AnswerJudge(BUILT_IN_POLICIES[0], turn=0, first_index=10)
    judge.judge(UNSAFE, scaffold=False)
    decision = judge.judge(UNSAFE, scaffold=False)
    assert decision
    return decision


async def test_a_decision_is_an_event_of_its_span(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    events = EvaluationEvents(telemetry.logger_provider, VERSION)
    tracer = telemetry.tracer_provider.get_tracer("t")
    span = tracer.start_span("call")
    with tracer.start_as_current_span("something else"):
        events.emit(Evaluation.of(answer_decision(), enforced=False, score=0.75), EVALUATED, span.get_span_context())
    span.end()
    event = await sink.log(EVALUATION_EVENT)
    call = await sink.span("call")
    assert (event.item.trace_id, event.item.span_id) == (call.item.trace_id, call.item.span_id)
    assert event.item.flags & 1  # sampled
    assert event.item.time_unix_nano
    assert (event.scope.name, event.scope.version) == ("guardwire", VERSION)
    assert event.attributes == {
        "gen_ai.evaluation.name": "guardwire.default",
        "gen_ai.evaluation.score.label": "unsafe",
        "gen_ai.evaluation.score.value": 0.75,
        "gen_ai.request.model": "Qwen3Guard-Stream-0.6B",
        "guardwire.policy": "default",
        "guardwire.action": "block",
        "guardwire.category": "violent",
        "guardwire.role": "assistant",
        "guardwire.enforced": False,
        "guardwire.token_index": 11,
        "guardwire.cut_index": 10,
        "guardwire.session.id": "0123456789abcdef",
        "guardwire.tenant": "acme",
    }


async def event_of(
    decision: Decision, sink: OtlpSink, start_telemetry: StartTelemetry, evaluated: Evaluated = EVALUATED
) -> Received:  # type: ignore[type-arg]
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    with telemetry.tracer_provider.get_tracer("t").start_as_current_span("something else"):
        EvaluationEvents(telemetry.logger_provider, VERSION).emit(
            Evaluation.of(decision, enforced=True), evaluated, None
        )
    return await sink.log(EVALUATION_EVENT)


async def test_without_a_span_it_has_none(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    event = await event_of(answer_decision(), sink, start_telemetry)
    assert not event.item.trace_id.strip(b"\0")
    assert not event.item.span_id.strip(b"\0")


async def test_what_is_not_known_is_left_out(sink: OtlpSink, start_telemetry: StartTelemetry) -> None:
    decision = decide_prompt(BUILT_IN_POLICIES[0], UNSAFE, turn=0, token_index=0)
    event = await event_of(decision, sink, start_telemetry, Evaluated("default", "gen"))
    assert event.attributes["guardwire.role"] == "user"
    assert event.attributes["guardwire.action"] == "flag"
    assert event.attributes["guardwire.token_index"] == 0
    assert not {"guardwire.session.id", "guardwire.tenant", "gen_ai.evaluation.score.value"} & event.attributes.keys()


async def test_what_was_not_judged_has_no_label_and_no_explanation(
    sink: OtlpSink, start_telemetry: StartTelemetry
) -> None:
    event = await event_of(NOT_JUDGED, sink, start_telemetry)
    assert event.attributes["error.type"] == "not_judged"
    assert event.attributes["guardwire.action"] == "block"
    assert not [name for name in event.attributes if name.startswith("gen_ai.evaluation.score")]
    assert "3141592653" not in str(sink.messages)


@pytest.mark.parametrize("level", [RiskLevel.SAFE, RiskLevel.CONTROVERSIAL])
async def test_a_level_is_never_a_score_label_of_what_was_not_judged(
    level: RiskLevel, sink: OtlpSink, start_telemetry: StartTelemetry
) -> None:
    telemetry = start_telemetry(otlp_endpoint=sink.endpoint)
    evaluation = Evaluation(
        action=Action.BLOCK, reason=DecisionReason.NOT_JUDGED, role=Role.USER, risk_level=level, score=0.9
    )
    EvaluationEvents(telemetry.logger_provider, VERSION).emit(evaluation, EVALUATED, None)
    event = await sink.log(EVALUATION_EVENT)
    assert not [name for name in event.attributes if name.startswith("gen_ai.evaluation.score")]


def test_without_a_collector_nothing_happens(start_telemetry: StartTelemetry) -> None:
    telemetry = start_telemetry()
    EvaluationEvents(telemetry.logger_provider, VERSION).emit(
        Evaluation.of(answer_decision(), enforced=True), EVALUATED, None
    )
