"""How an answer grows: tokens and text in, extensions of the engine's sequence out.

An answer that may slide fills the context to the last token. What is pushed beyond waits until all before is judged;
then the older half of the answer leaves the context, the newer half is read again without being judged again, and the
waiting tokens go on. So a token's verdict depends on the tokens before it alone, not on how they were cut into messages
or on how fast they were judged.
"""

from array import array
from collections.abc import Sequence

from guardwire_server.core.errors import OutOfRange
from guardwire_server.core.events import EngineCommand, ExtendSequence, TruncateSequence
from guardwire_server.core.ports import SessionLimits, TurnRenderer
from guardwire_server.core.step_plan import ONE_RESPONSE
from guardwire_server.core.transcript import Transcript

MIN_WINDOW_TOKENS = 2
"""An answer can slide if the context has room for two of its tokens: then there is a half to forget."""


class AnswerInput:
    """Owner: the session, whose transcript it extends. `slides` is settled when the stream opens."""

    def __init__(self, limits: SessionLimits, renderer: TurnRenderer, transcript: Transcript) -> None:
        self._max_context_tokens = limits.max_context_tokens
        self._scaffold = renderer.scaffold
        self._control_ids = renderer.scaffold.control_ids
        self._text = renderer.text_stream()
        self._transcript = transcript
        self._overflow: array[int] | None = None  # tokens that wait for the context to slide
        self.slides = False

    @property
    def is_waiting(self) -> bool:
        """Whether tokens wait for the context to slide."""
        return self._overflow is not None

    def push_ids(self, ids: "array[int]", field: str) -> list[EngineCommand]:
        """Appends tokens to the present answer.

        Raises:
            OutOfRange: If they outgrow the context, and it cannot slide.
        """
        if not ids:
            return []
        limit, transcript = self._max_context_tokens, self._transcript
        room = limit - transcript.num_positions
        if len(ids) <= room:
            return [self._extend(ids)]
        if not self.slides or limit - transcript.present.answer_position < MIN_WINDOW_TOKENS:
            self.require_room(len(ids), field)
        commands: list[EngineCommand] = [self._extend(ids[:room])] if room else []
        self._overflow = ids[room:]
        return commands + self.slide()

    def push_id(self, token_id: int) -> bool:
        """Appends one token of text for which there is room; False, and nothing is done, if it is not that simple."""
        transcript = self._transcript
        marks = transcript.scaffold_marks
        if (
            self._overflow is not None
            or transcript.num_positions >= self._max_context_tokens
            or token_id in self._control_ids
            or (marks and marks[-1])  # what follows scaffold may be scaffold
        ):
            return False
        transcript.push_text_token(token_id)
        return True

    def push_text(self, text: str, *, flush: bool) -> list[EngineCommand]:
        """Appends text to the present answer, as far as its tokens are settled; with `flush` all of it."""
        tokens = list(self._text.push(text))
        if flush:
            tokens += self._text.flush()
        return self._push_settled(tokens)

    def flush_text(self) -> list[EngineCommand]:
        """Appends what is held back."""
        return self._push_settled(self._text.flush())

    def roll_back(self, num_tokens_kept: int) -> TruncateSequence:
        """Forgets the present answer's tokens from that index on, and what text is held back.

        Raises:
            OutOfRange: If there is no such token, or it is not in the context any more.
        """
        transcript, kept = self._transcript, num_tokens_kept
        first, lowest, highest = transcript.present.first_index, transcript.present.window_index, transcript.num_pushed
        if not lowest <= kept <= highest:
            where = "into the prompt" if kept < first else "out of the context" if kept < lowest else "beyond the end"
            raise OutOfRange(
                "ROLLBACK_OUT_OF_RANGE",
                "rollback.num_tokens_kept",
                f"{kept} is {where}: the present answer allows {lowest} to {highest}",
            )
        num_positions = transcript.truncate(kept)
        self._text.restart(transcript.text_offset(kept) if transcript.text_ends else 0)
        return TruncateSequence(num_positions, transcript.epoch)

    def slide(self) -> list[EngineCommand]:
        """Goes on with the tokens that wait, if everything before them is judged."""
        if self._overflow is None or self._transcript.num_pending:
            return []
        ids, self._overflow = self._overflow, None
        kept = self._transcript.slide()
        return [
            TruncateSequence(self._transcript.present.answer_position, self._transcript.epoch),
            ExtendSequence(kept, bytes(len(kept))),
            *self.push_ids(ids, "tokens.token_ids"),
        ]

    def require_room(self, num_tokens: int, field: str) -> None:
        """Checks that so many more tokens fit the context.

        Raises:
            OutOfRange: Naming the field and the limit.
        """
        total, limit = self._transcript.num_positions + num_tokens, self._max_context_tokens
        if total > limit:
            message = f"{num_tokens} more tokens make {total}, the context holds {limit}"
            raise OutOfRange("CONTEXT_OVERFLOW", field, message)

    def _extend(self, ids: "array[int]") -> ExtendSequence:
        """Appends tokens for which there is room."""
        transcript = self._transcript
        transcript.push(ids, self._scaffold.marks(ids, transcript.previous_id))
        return ExtendSequence(ids, ONE_RESPONSE * len(ids))

    def _push_settled(self, tokens: Sequence[tuple[int, int]]) -> list[EngineCommand]:
        commands = self.push_ids(array("i", (token_id for token_id, _ in tokens)), "text.text")
        self._transcript.text_ends.extend(end for _, end in tokens)
        return commands
