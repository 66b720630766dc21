"""The packed form of ModerateStreams, taken apart and put together."""

from collections.abc import Iterator, Sequence
from typing import Any

from guardwire.v1 import moderation_pb2 as pb


def token_step(*tokens: tuple[int, int]) -> pb.TokenStep:
    """One token for each (stream id, token id)."""
    return pb.TokenStep(stream_ids=[stream for stream, _ in tokens], token_ids=[token for _, token in tokens])


def responses_of(message: pb.ModerateStreamsResponse) -> Iterator[tuple[int, pb.ModerateStreamResponse]]:
    """What a message tells each stream, the packed verdicts first, as the contract says; errors left out."""
    yield from _unpacked(message.step)
    for item in message.responses:
        if item.HasField("response"):
            yield item.stream_id, item.response


def _unpacked(step: pb.StepVerdicts) -> Iterator[tuple[int, pb.ModerateStreamResponse]]:
    """Each stream's consecutive tokens as one response, which is what they came as before they were packed."""
    columns: tuple[Sequence[Any], ...] = (
        step.token_indices,
        step.risk_levels,
        step.safe_probabilities,
        step.controversial_probabilities,
        step.unsafe_probabilities,
        step.categories,
        step.category_probabilities,
    )
    assert {len(column) for column in columns} == {len(step.stream_ids)}
    start = 0
    while start < len(step.stream_ids):
        stop, stream_id, first = start + 1, step.stream_ids[start], step.token_indices[start]
        while stop < len(step.stream_ids) and step.stream_ids[stop] == stream_id:
            assert step.token_indices[stop] == first + stop - start
            stop += 1
        levels, safe, controversial, unsafe, categories, probabilities = (column[start:stop] for column in columns[1:])
        verdicts = pb.Verdicts(
            start_index=first,
            risk_levels=levels,
            safe_probabilities=safe,
            controversial_probabilities=controversial,
            unsafe_probabilities=unsafe,
            categories=categories,
            category_probabilities=probabilities,
        )
        yield stream_id, pb.ModerateStreamResponse(verdicts=verdicts)
        start = stop
