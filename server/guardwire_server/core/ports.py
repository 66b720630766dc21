"""What a session is given: its limits, and from the model's side the template and the tokenizer, as pure functions."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardwire_server.core import events as ev
from guardwire_server.core.errors import InvalidField, StreamTimeout
from guardwire_server.core.scaffold import Scaffold
from guardwire_server.core.verdict import Message


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """`max_pending_tokens` is where a session stops asking for input; the others end it."""

    max_context_tokens: int
    max_pending_tokens: int
    idle_timeout_s: float
    max_lifetime_s: float

    def timeout(self, *, age_s: float, idle_s: float) -> StreamTimeout | None:
        """Why a stream so old, whose caller has been silent for so long, must end; None if it need not."""
        if age_s >= self.max_lifetime_s:
            return StreamTimeout("MAX_LIFETIME", f"the stream is older than the limit of {self.max_lifetime_s:g} s")
        if idle_s >= self.idle_timeout_s:
            return StreamTimeout("IDLE_TIMEOUT", f"the stream sent nothing for {self.idle_timeout_s:g} s, the limit")
        return None


class TextStream(Protocol):
    """Tokenises text as it comes; offsets are bytes of UTF-8 in all text of the stream."""

    def push(self, text: str) -> Sequence[tuple[int, int]]:
        """Takes text; returns (token id, end offset) of what is settled."""
        ...

    def flush(self) -> Sequence[tuple[int, int]]:
        """Settles what was held back."""
        ...

    def restart(self, offset_bytes: int) -> None:
        """Drops what was held back and goes on counting from `offset_bytes`."""
        ...


class TurnRenderer(Protocol):
    """The stream model's template and tokenizer. Pure: the same arguments give the same tokens."""

    scaffold: Scaffold

    def prompt(self, messages: Sequence[Message], thinking: ev.Thinking) -> ev.RenderedTurn:
        """The conversation up to the answer."""
        ...

    def user_turn(
        self, content: "str | array[int]", thinking: ev.Thinking, answer_tail: Sequence[int]
    ) -> ev.RenderedTurn:
        """What closes an answer that ends in `answer_tail` and opens the next one."""
        ...

    def find_query_index(self, token_ids: Sequence[int]) -> int | None:
        """Where the last user message of a rendered template closes."""
        ...

    def text_stream(self) -> TextStream:
        """A new incremental tokenizer."""
        ...


def render_prompt(
    renderer: TurnRenderer, prompt: "tuple[Message, ...] | ev.RenderedTurn | array[int]", thinking: ev.Thinking
) -> ev.RenderedTurn:
    """The prompt of an `open`, in whichever of its forms, up to the answer.

    Raises:
        InvalidField: If templated ids hold no user message.
    """
    if isinstance(prompt, ev.RenderedTurn):
        return prompt
    if not isinstance(prompt, array):
        return renderer.prompt(prompt, thinking)
    query_index = renderer.find_query_index(prompt)
    if query_index is None:
        raise InvalidField("NO_USER_TURN", "open.templated.token_ids", "holds no user turn closed by <|im_end|>")
    return ev.RenderedTurn(prompt, query_index)


LONG_TEXT_CHARS = 16_384
"""Tokenising takes about a microsecond per character: what is longer should not be tokenised where streams wait."""


def is_long(messages: Sequence[Message]) -> bool:
    """Whether a conversation is too long to be tokenised on the way."""
    return sum(len(message.content) for message in messages) > LONG_TEXT_CHARS
