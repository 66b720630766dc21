"""The packed form of a shared call's messages, as the fake server reads and writes it."""

from __future__ import annotations

from collections.abc import Iterable

from guardwire.v1 import moderation_pb2 as pb


def requests_of(message: pb.ModerateStreamsRequest) -> list[pb.StreamRequest]:
    """All that a message asks for, in the order in which a server takes it."""
    packed = zip(message.step.stream_ids, message.step.token_ids, strict=True)
    return [*message.requests, *(_push(stream_id, token_id) for stream_id, token_id in packed)]


def packed(responses: Iterable[pb.StreamResponse]) -> pb.ModerateStreamsResponse:
    """The message with each stream's leading verdicts on single tokens in its step."""
    message = pb.ModerateStreamsResponse()
    told = set()
    for item in responses:
        verdicts = item.response.verdicts
        if len(verdicts.risk_levels) == 1 and not verdicts.text_end_offsets and item.stream_id not in told:
            _append(message.step, item.stream_id, verdicts)
        else:
            message.responses.append(item)
            told.add(item.stream_id)
    return message


def safe_verdicts(*stream_ids: int) -> pb.StepVerdicts:
    """What tells each of these streams that its first token is safe."""
    number = len(stream_ids)
    return pb.StepVerdicts(
        stream_ids=stream_ids,
        token_indices=[0] * number,
        risk_levels=[pb.RISK_LEVEL_SAFE] * number,
        safe_probabilities=[0.75] * number,
        controversial_probabilities=[0.125] * number,
        unsafe_probabilities=[0.125] * number,
        categories=[pb.CATEGORY_UNSPECIFIED] * number,
        category_probabilities=[0.0] * number,
    )


def _push(stream_id: int, token_id: int) -> pb.StreamRequest:
    request = pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=[token_id]))
    return pb.StreamRequest(stream_id=stream_id, request=request)


def _append(step: pb.StepVerdicts, stream_id: int, verdicts: pb.Verdicts) -> None:
    step.stream_ids.append(stream_id)
    step.token_indices.append(verdicts.start_index)
    step.risk_levels.extend(verdicts.risk_levels)
    step.safe_probabilities.extend(verdicts.safe_probabilities)
    step.controversial_probabilities.extend(verdicts.controversial_probabilities)
    step.unsafe_probabilities.extend(verdicts.unsafe_probabilities)
    step.categories.extend(verdicts.categories)
    step.category_probabilities.extend(verdicts.category_probabilities)
