"""Verdicts on tokens as protobuf: the messages of which there are most.

The core's numbers of levels and categories are the wire's.
"""

from typing import Any

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import TokenVerdicts
from guardwire_server.core.verdict import VerdictArrays


class SingleVerdict:
    """The response that tells one verdict, as nearly all on a busy stream do: one message, filled anew for each.

    To set its fields costs less than half of what it costs to make it. Owner: the call.
    """

    def __init__(self) -> None:
        self._response = pb.ModerateStreamResponse()
        self._verdicts = self._response.verdicts
        self._columns = _columns(self._verdicts)
        for column in self._columns:
            column.append(0)

    def response(self, update: TokenVerdicts) -> pb.ModerateStreamResponse | None:
        """The response, until the next call; None if there is more to tell than one verdict."""
        start_index, verdicts, text_end_offsets, scaffold = update
        if len(verdicts) != 1 or text_end_offsets or scaffold:
            return None
        self._verdicts.start_index = start_index
        levels, safe, controversial, unsafe, categories, category_probabilities = self._columns
        levels[0], safe[0], controversial[0], unsafe[0], categories[0], category_probabilities[0] = verdicts.row(0)
        return self._response


def write_verdicts(update: TokenVerdicts, message: pb.Verdicts) -> None:
    """Writes verdicts on consecutive tokens into an empty message."""
    start_index, verdicts, text_end_offsets, scaffold = update
    message.start_index = start_index
    if len(verdicts) == 1:  # as on a busy stream: plain numbers cost half as much as rows of one
        for column, value in zip(_columns(message), verdicts.row(0), strict=True):
            column.append(value)
    else:
        extend_verdicts(verdicts, message)
    if text_end_offsets:
        message.text_end_offsets.extend(text_end_offsets)
    if scaffold:
        message.scaffold.extend(map(bool, scaffold))


def extend_verdicts(verdicts: VerdictArrays, message: pb.Verdicts | pb.StepVerdicts) -> None:
    """Appends verdicts to the arrays that both messages have."""
    levels, safe, controversial, unsafe, categories, category_probabilities = _columns(message)
    probabilities = verdicts.probabilities
    levels.extend(verdicts.risk_levels)
    safe.extend(probabilities[0::3])
    controversial.extend(probabilities[1::3])
    unsafe.extend(probabilities[2::3])
    categories.extend(verdicts.categories)
    category_probabilities.extend(verdicts.category_probabilities)


def _columns(message: pb.Verdicts | pb.StepVerdicts) -> tuple[Any, ...]:
    """The arrays that both messages have, in the order of a `VerdictRow`.

    Any, since levels and categories are no plain numbers to the stubs.
    """
    return (
        message.risk_levels,
        message.safe_probabilities,
        message.controversial_probabilities,
        message.unsafe_probabilities,
        message.categories,
        message.category_probabilities,
    )
