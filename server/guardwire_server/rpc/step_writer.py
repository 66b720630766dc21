"""The packed form of verdicts on single tokens of many streams."""

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import TokenVerdicts, Update
from guardwire_server.core.verdict import VerdictRow

MAX_RUN = 8
"""Verdicts on more consecutive tokens of one stream take less as a response of their own, which names it once."""


class StepWriter:
    """Gathers verdicts on single tokens of many streams, packed. Owner: the call, for one message."""

    def __init__(self) -> None:
        self._stream_ids: list[int] = []
        self._token_indices: list[int] = []
        self._rows: list[VerdictRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    def takes(self, stream_id: int, update: Update) -> bool:
        """Takes an update that the packed form can tell: verdicts on a few tokens of text; False if it is another."""
        if not isinstance(update, TokenVerdicts):
            return False
        start_index, verdicts, text_end_offsets, scaffold = update
        if len(verdicts) > MAX_RUN or text_end_offsets or scaffold:
            return False
        for offset in range(len(verdicts)):
            self._stream_ids.append(stream_id)
            self._token_indices.append(start_index + offset)
            self._rows.append(verdicts.row(offset))
        return True

    def write(self, message: pb.StepVerdicts) -> None:
        """Writes what was taken, which must be something, into an empty message."""
        levels, safe, controversial, unsafe, categories, category_probabilities = zip(*self._rows, strict=True)
        message.stream_ids.extend(self._stream_ids)
        message.token_indices.extend(self._token_indices)
        message.risk_levels.extend(levels)
        message.safe_probabilities.extend(safe)
        message.controversial_probabilities.extend(controversial)
        message.unsafe_probabilities.extend(unsafe)
        message.categories.extend(categories)
        message.category_probabilities.extend(category_probabilities)
