"""The packed form of verdicts on single tokens of many streams."""

from guardwire.v1 import moderation_pb2 as pb
from guardwire_server.core.events import TokenVerdicts, Update
from guardwire_server.core.verdict import VerdictArrays
from guardwire_server.rpc.verdict_messages import extend_verdicts

MAX_RUN = 8
"""Verdicts on more consecutive tokens of one stream take less as a response of their own, which names it once."""


class StepWriter:
    """Gathers verdicts on single tokens of many streams, packed. Owner: the call, for one message.

    Verdicts that come in the order in which they lie are not taken apart: `_start` to `_stop` - 1 of `_whole` have come
    last.
    """

    def __init__(self) -> None:
        self._stream_ids: list[int] = []
        self._token_indices: list[int] = []
        self._verdicts: list[VerdictArrays] = []
        self._whole: VerdictArrays | None = None
        self._start = self._stop = 0

    def __len__(self) -> int:
        """How many tokens' verdicts were taken."""
        return len(self._stream_ids)

    def add(self, stream_id: int, token_index: int, verdicts: VerdictArrays, entry: int) -> None:
        """Takes the verdict on one token: that at `entry`."""
        self._stream_ids.append(stream_id)
        self._token_indices.append(token_index)
        if verdicts is not self._whole or entry != self._stop:
            self._end_run()
            self._whole, self._start = verdicts, entry
        self._stop = entry + 1

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
        self._end_run()
        self._verdicts.append(verdicts)
        return num_tokens

    def write(self, message: pb.StepVerdicts) -> None:
        """Writes what was taken, which must be something, into an empty message."""
        self._end_run()
        message.stream_ids.extend(self._stream_ids)
        message.token_indices.extend(self._token_indices)
        extend_verdicts(VerdictArrays.join(self._verdicts), message)

    def _end_run(self) -> None:
        if self._whole is not None:
            self._verdicts.append(self._whole.slice(self._start, self._stop))
            self._whole = None
