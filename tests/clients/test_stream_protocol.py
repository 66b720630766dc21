"""The protocol without I/O."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from guardwire import Action, InputKind, InvalidRequest, ModerateOptions, RolledBack, ServerFault, Thinking, UpdateMode
from guardwire.convert import responses
from guardwire.convert.requests import Request, SingleToken, message
from guardwire.stream_protocol import StreamProtocol
from guardwire.v1 import moderation_pb2 as pb
from tests.clients.fake_step import safe_verdicts


def opened(**options: Any) -> StreamProtocol:  # noqa: ANN401
    protocol = StreamProtocol("hi", ModerateOptions(**options))
    limits = pb.Limits(max_tokens_per_message=3)
    protocol.receive(pb.ModerateStreamResponse(opened=pb.StreamOpened(session_id="s", limits=limits)))
    return protocol


def only(requests: list[Request]) -> pb.ModerateStreamRequest:
    [request] = requests
    return message(request)


def decision(
    token_index: int,
    action: pb.Action.ValueType = pb.ACTION_BLOCK,
    *,
    role: pb.Role.ValueType = pb.ROLE_ASSISTANT,
    turn: int = 0,
    enforced: bool = True,
) -> pb.ModerateStreamResponse:
    return pb.ModerateStreamResponse(
        decision=pb.Decision(action=action, role=role, turn=turn, token_index=token_index, enforced=enforced)
    )


def rolled_back(num_tokens_kept: int) -> pb.ModerateStreamResponse:
    return pb.ModerateStreamResponse(rolled_back=pb.RolledBack(num_tokens_kept=num_tokens_kept))


def test_open_carries_every_option() -> None:
    options = ModerateOptions(
        thinking=Thinking.ON,
        input=InputKind.TEXT,
        policy="strict",
        model="m",
        update_mode=UpdateMode.ON_CHANGE,
        end_on_block=True,
        observe_only=True,
        tokenizer_fingerprint="f",
        resume_from=7,
    )
    request = StreamProtocol([("user", "hi")], options).open.open
    assert request.conversation.messages[0] == pb.Message(role=pb.ROLE_USER, content="hi")
    assert (request.thinking, request.input) == (pb.THINKING_ON, pb.INPUT_KIND_TEXT)
    assert (request.policy, request.model, request.tokenizer_fingerprint) == ("strict", "m", "f")
    assert request.update_mode == pb.UPDATE_MODE_ON_CHANGE
    assert (request.end_on_block, request.observe_only, request.resume_from) == (True, True, 7)


def test_the_prompt_is_messages_or_ids() -> None:
    request = StreamProtocol(None, ModerateOptions(token_ids=[1, 2])).open.open
    assert list(request.templated.token_ids) == [1, 2]
    for messages, token_ids in ((None, None), ("hi", [1])):
        with pytest.raises(InvalidRequest, match="either"):
            StreamProtocol(messages, ModerateOptions(token_ids=token_ids))


def test_pushes_count_and_respect_the_limit() -> None:
    protocol = opened()
    assert protocol.push([]) == []
    first = protocol.push(range(5))
    second = protocol.push([9])
    assert second == [SingleToken(9, 5)]
    assert [(list(r.tokens.token_ids), r.tokens.start_index) for r in map(message, first + second)] == [
        ([0, 1, 2], 0),
        ([3, 4], 3),
        ([9], 5),
    ]
    assert protocol.num_tokens == 6


@pytest.mark.parametrize("wrong", [-1, 1 << 32, "1", 1.5, None])
def test_what_is_no_token_id_is_refused_and_not_counted(wrong: Any) -> None:  # noqa: ANN401
    protocol = opened()
    with pytest.raises(InvalidRequest) as caught:
        protocol.push([1, wrong])
    assert caught.value.field == "tokens.token_ids"
    assert protocol.num_tokens == 0


def test_rollback_is_bounded_by_the_present_answer() -> None:
    protocol = opened()
    protocol.push([1, 2, 3])
    protocol.user_turn("and then?")
    protocol.push([4, 5])
    for wrong in (2, 6, -1):
        with pytest.raises(InvalidRequest) as caught:
            protocol.rollback(wrong)
        assert caught.value.code is grpc.StatusCode.OUT_OF_RANGE
    assert only(protocol.rollback(4)).rollback.num_tokens_kept == 4
    assert only(protocol.push([6])).tokens.start_index == 4


def test_a_stream_takes_one_kind_of_input() -> None:
    with pytest.raises(InvalidRequest, match="opened for tokens"):
        opened().push_text("hi", flush=False)
    with pytest.raises(InvalidRequest, match="opened for text"):
        opened(input=InputKind.TEXT).push([1])
    with pytest.raises(InvalidRequest, match="not Unicode"):
        opened(input=InputKind.TEXT).push_text("\ud800", flush=False)


def test_nothing_follows_finish() -> None:
    protocol = opened()
    protocol.finish()
    for verb in (
        protocol.finish,
        lambda: protocol.push([1]),
        lambda: protocol.rollback(0),
        lambda: protocol.user_turn(""),
    ):
        with pytest.raises(InvalidRequest, match="finished"):
            verb()


def test_a_user_turn_is_text_or_ids() -> None:
    assert only(opened().user_turn("hi")).user_turn.content == "hi"
    assert list(only(opened().user_turn([4, 5])).user_turn.tokens.token_ids) == [4, 5]


def test_the_highest_decision_is_in_force() -> None:
    protocol = opened()
    assert protocol.decision is None
    assert not protocol.blocked
    protocol.receive(decision(0, pb.ACTION_FLAG))
    assert protocol.decision is not None
    assert protocol.decision.action is Action.FLAG
    assert not protocol.blocked
    protocol.receive(decision(4))
    protocol.receive(decision(5, pb.ACTION_FLAG))
    assert protocol.decision.token_index == 4
    assert protocol.blocked


def test_an_observed_block_does_not_block() -> None:
    protocol = opened()
    protocol.receive(decision(0, enforced=False))
    assert protocol.decision is not None
    assert not protocol.blocked


def test_a_user_turn_begins_anew() -> None:
    protocol = opened()
    protocol.receive(decision(0))
    protocol.user_turn("hi")
    assert not protocol.blocked
    protocol.receive(decision(1, turn=0))  # was under way
    assert not protocol.blocked
    protocol.receive(decision(1, turn=1))
    assert protocol.blocked


def test_a_rollback_takes_decisions_back_at_once() -> None:
    protocol = opened()
    protocol.push([1, 2, 3, 4])
    protocol.receive(decision(1, pb.ACTION_FLAG))
    protocol.receive(decision(3))
    protocol.rollback(3)
    assert not protocol.blocked
    assert protocol.decision is not None
    assert protocol.decision.action is Action.FLAG
    protocol.receive(decision(3))  # was under way, about a token that is forgotten
    assert not protocol.blocked
    update = protocol.receive(rolled_back(3))
    assert update == RolledBack(3, None)
    protocol.receive(decision(3))  # about the token that was pushed instead
    assert protocol.blocked


def test_a_rollback_keeps_what_was_decided_about_kept_tokens_and_the_prompt() -> None:
    protocol = opened()
    protocol.receive(decision(0, pb.ACTION_FLAG, role=pb.ROLE_USER))
    protocol.push([1, 2, 3, 4])
    protocol.rollback(2)
    protocol.receive(decision(1))  # was under way, about a token that stays
    assert protocol.blocked
    protocol.receive(rolled_back(2))
    protocol.rollback(0)
    assert protocol.decision is not None
    assert protocol.decision.action is Action.FLAG


def test_what_breaks_the_contract_is_the_servers_fault() -> None:
    with pytest.raises(ServerFault, match="first message"):
        StreamProtocol("hi", ModerateOptions()).receive(decision(0))
    uneven = pb.Verdicts(risk_levels=[pb.RISK_LEVEL_SAFE], safe_probabilities=[1.0, 0.5])
    with pytest.raises(ServerFault, match="length"):
        opened().receive(pb.ModerateStreamResponse(verdicts=uneven))
    with pytest.raises(ServerFault, match="Action"):
        opened().receive(decision(0, pb.ACTION_UNSPECIFIED))


def test_a_packed_verdict_is_read_as_one_that_came_alone() -> None:
    step = safe_verdicts(7, 8)
    step.token_indices[1] = 3
    step.risk_levels[1] = pb.RISK_LEVEL_UNSAFE
    step.categories[1] = pb.CATEGORY_PII
    alone = pb.Verdicts(
        start_index=3,
        risk_levels=[pb.RISK_LEVEL_UNSAFE],
        safe_probabilities=[0.75],
        controversial_probabilities=[0.125],
        unsafe_probabilities=[0.125],
        categories=[pb.CATEGORY_PII],
        category_probabilities=[0.0],
    )
    (_, first), (stream_id, packed) = responses.packed_verdicts(step)
    assert stream_id == 8
    assert opened().receive(packed) == opened().receive(pb.ModerateStreamResponse(verdicts=alone))
    with pytest.raises(ServerFault, match="first message"):
        StreamProtocol("hi", ModerateOptions()).receive(first)
    with pytest.raises(ServerFault, match="RiskLevel 9"):
        opened().receive(first._replace(risk_level=9))


@pytest.mark.parametrize("field", [field.name for field in pb.StepVerdicts.DESCRIPTOR.fields])
def test_packed_verdicts_of_unequal_lengths_are_nobodys(field: str) -> None:
    step = safe_verdicts(7, 8)
    del getattr(step, field)[0]
    with pytest.raises(ServerFault, match="length"):
        responses.packed_verdicts(step)


def test_what_a_newer_server_adds_is_ignored() -> None:
    assert opened().receive(pb.ModerateStreamResponse()) is None
