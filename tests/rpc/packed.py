"""The packed form of ModerateStreams, taken apart and put together."""

from collections.abc import Iterable, Iterator

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


def _unpacked(step: pb.StepVerdicts) -> Iterable[tuple[int, pb.ModerateStreamResponse]]:
    columns = (
        step.stream_ids,
        step.token_indices,
        step.risk_levels,
        step.safe_probabilities,
        step.controversial_probabilities,
        step.unsafe_probabilities,
        step.categories,
        step.category_probabilities,
    )
    for stream_id, index, level, safe, controversial, unsafe, category, probability in zip(*columns, strict=True):
        verdicts = pb.Verdicts(
            start_index=index,
            risk_levels=[level],
            safe_probabilities=[safe],
            controversial_probabilities=[controversial],
            unsafe_probabilities=[unsafe],
            categories=[category],
            category_probabilities=[probability],
        )
        yield stream_id, pb.ModerateStreamResponse(verdicts=verdicts)
