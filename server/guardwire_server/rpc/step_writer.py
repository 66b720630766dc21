"""The packed form of verdicts on single tokens of many streams."""

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import TokenVerdicts, Update
from guardwire_server.core.verdict import VerdictArrays
from guardwire_server.rpc.responses import extend_verdicts

MAX_RUN = 8
"""Verdicts on more consecutive tokens of one stream take less as a response of their own, which names it once."""


class StepWriter:
    """Gathers verdicts on single tokens of many streams, packed. Owner: the call, for one message."""

    def __init__(self) -> None:
        self._stream_ids: list[int] = []
        self._token_indices: list[int] = []
        self._verdicts: list[VerdictArrays] = []

    def __bool__(self) -> bool:
        """Whether anything was taken."""
        return bool(self._verdicts)

    def take(self, stream_id: int, update: Update) -> int:
        """Takes an update that the packed form can tell: verdicts on a few tokens of text.

        Returns:
            The number of tokens; 0 if it is another update, and was not taken.
        """
        if not isinstance(update, TokenVerdicts):
            return 0
        start_index, verdicts, text_end_offsets, scaffold = update
        num_tokens = len(verdicts)
        if num_tokens > MAX_RUN or text_end_offsets or scaffold:
            return 0
        for token_index in range(start_index, start_index + num_tokens):
            self._stream_ids.append(stream_id)
            self._token_indices.append(token_index)
        self._verdicts.append(verdicts)
        return num_tokens

    def write(self, message: pb.StepVerdicts) -> None:
        """Writes what was taken, which must be something, into an empty message."""
        message.stream_ids.extend(self._stream_ids)
        message.token_indices.extend(self._token_indices)
        extend_verdicts(VerdictArrays.join(self._verdicts), message)
