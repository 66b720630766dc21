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

    def __len__(self) -> int:
        """Tokens gathered."""
        return len(self._stream_ids)

    def take(self, stream_id: int, update: Update) -> bool:
        """Takes an update that the packed form can tell: verdicts on a few tokens of text; False if it is another."""
        if not isinstance(update, TokenVerdicts):
            return False
        start_index, verdicts, text_end_offsets, scaffold = update
        num_tokens = len(verdicts)
        if num_tokens > MAX_RUN or text_end_offsets or scaffold:
            return False
        for offset in range(num_tokens):
            self._stream_ids.append(stream_id)
            self._token_indices.append(start_index + offset)
        self._verdicts.append(verdicts)
        return True

    def write(self, message: pb.StepVerdicts) -> None:
        """Writes what was taken, which must be something, into an empty message."""
        message.stream_ids.extend(self._stream_ids)
        message.token_indices.extend(self._token_indices)
        extend_verdicts(VerdictArrays.join(self._verdicts), message)
