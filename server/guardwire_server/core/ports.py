"""What a session needs from the model's side: the template and the tokenizer, as pure functions of their arguments."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guardwire_server.core import events as ev
from guardwire_server.core.scaffold import Scaffold
from guardwire_server.core.verdict import Message


@dataclass(frozen=True, slots=True)
class RenderedTurn:
    """Tokens up to where the answer begins; the user message closes at `query_index` among them."""

    token_ids: "array[int]"
    query_index: int


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

    def prompt(self, messages: Sequence[Message], thinking: ev.Thinking) -> RenderedTurn:
        """The conversation up to the answer."""
        ...

    def user_turn(self, content: "str | array[int]", thinking: ev.Thinking, answer_tail: Sequence[int]) -> RenderedTurn:
        """What closes an answer that ends in `answer_tail` and opens the next one."""
        ...

    def find_query_index(self, token_ids: Sequence[int]) -> int | None:
        """Where the last user message of a rendered template closes."""
        ...

    def text_stream(self) -> TextStream:
        """A new incremental tokenizer."""
        ...
