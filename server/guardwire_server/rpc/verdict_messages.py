"""Verdicts on tokens as protobuf: the messages of which there are most.

The core's numbers of levels and categories are the wire's.
"""

from collections.abc import Iterable
from typing import Any, cast

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import TokenVerdicts
from guardwire_server.core.verdict import VerdictArrays


class SingleVerdict:
    """The response that tells one verdict, as nearly all on a busy stream do: one message, filled anew for each.

    To set its fields costs a third of what it costs to make it. Owner: the call.
    """

    def __init__(self) -> None:
        self._response = pb.ModerateStreamResponse()
        self._verdicts = verdicts = self._response.verdicts
        columns: tuple[Any, ...] = (  # to the stubs, levels and categories are no plain numbers
            verdicts.risk_levels,
            verdicts.safe_probabilities,
            verdicts.controversial_probabilities,
            verdicts.unsafe_probabilities,
            verdicts.categories,
            verdicts.category_probabilities,
        )
        for column in columns:
            column.append(0)
        self._columns = columns

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
        level, safe, controversial, unsafe, category, category_probability = verdicts.row(0)
        message.risk_levels.append(cast("pb.RiskLevel.ValueType", level))
        message.safe_probabilities.append(safe)
        message.controversial_probabilities.append(controversial)
        message.unsafe_probabilities.append(unsafe)
        message.categories.append(cast("pb.Category.ValueType", category))
        message.category_probabilities.append(category_probability)
    else:
        extend_verdicts(verdicts, message)
    if text_end_offsets:
        message.text_end_offsets.extend(text_end_offsets)
    if scaffold:
        message.scaffold.extend(map(bool, scaffold))


def extend_verdicts(verdicts: VerdictArrays, message: pb.Verdicts | pb.StepVerdicts) -> None:
    """Appends verdicts to the arrays that both messages have."""
    probabilities = verdicts.probabilities
    message.risk_levels.extend(cast("Iterable[pb.RiskLevel.ValueType]", verdicts.risk_levels))
    message.safe_probabilities.extend(probabilities[0::3])
    message.controversial_probabilities.extend(probabilities[1::3])
    message.unsafe_probabilities.extend(probabilities[2::3])
    message.categories.extend(cast("Iterable[pb.Category.ValueType]", verdicts.categories))
    message.category_probabilities.extend(verdicts.category_probabilities)
