"""Templates and tokenizers as the core and the engine see them: pure functions from text to ids."""

from array import array
from collections.abc import Sequence

from guardwire_server.core.events import RenderedTurn, Thinking
from guardwire_server.core.ports import TextStream
from guardwire_server.core.scaffold import Scaffold
from guardwire_server.core.verdict import Message
from guardwire_server.model.checkpoint_template import ChatTemplate
from guardwire_server.model.prompt import (
    StreamPrompt,
    find_query_index,
    render_gen_prompt,
    render_stream_prompt,
    render_user_turn,
)
from guardwire_server.model.text_stream import IncrementalTokenizer
from guardwire_server.model.tokens import Tokenizer

_NEWLINES = ("\n", "\n\n")


class StreamRenderer:
    """Implements core.ports.TurnRenderer. Immutable."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        control = tokenizer.control
        control_ids = {control.im_start, control.im_end, control.think, control.think_end}
        newlines = (tokenizer.encode_plain(newline) for newline in _NEWLINES)
        self.scaffold = Scaffold(
            control_ids=frozenset(control_ids),
            newline_ids=frozenset(ids[0] for ids in newlines if len(ids) == 1),
        )

    def prompt(self, messages: Sequence[Message], thinking: Thinking) -> RenderedTurn:
        """The conversation up to the answer."""
        return _rendered(render_stream_prompt(self._tokenizer, messages, thinking=thinking is Thinking.ON))

    def user_turn(self, content: "str | array[int]", thinking: Thinking, answer_tail: Sequence[int]) -> RenderedTurn:
        """What closes the present answer and opens the next one."""
        is_thinking = thinking is Thinking.ON
        return _rendered(render_user_turn(self._tokenizer, content, thinking=is_thinking, answer_tail=answer_tail))

    def find_query_index(self, token_ids: Sequence[int]) -> int | None:
        """Where the last user message of a rendered template closes."""
        return find_query_index(self._tokenizer, token_ids)

    def text_stream(self) -> TextStream:
        """A new incremental tokenizer."""
        return _TextStream(self._tokenizer)


class _TextStream:
    """Implements core.ports.TextStream."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._incremental = IncrementalTokenizer(tokenizer)

    def push(self, text: str) -> list[tuple[int, int]]:
        return [(token.id, token.end_offset_bytes) for token in self._incremental.push(text)]

    def flush(self) -> list[tuple[int, int]]:
        return [(token.id, token.end_offset_bytes) for token in self._incremental.flush()]

    def restart(self, offset_bytes: int) -> None:
        self._incremental.restart(offset_bytes)


class GenRenderer:
    """Implements engine.classifier.ConversationRenderer. Immutable."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template

    def conversation(self, messages: Sequence[Message]) -> "array[int]":
        """The templated prompt that asks about the last message."""
        return array("i", render_gen_prompt(self._template, self._tokenizer, messages))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        return self._tokenizer.decode_answer(token_ids)


def _rendered(prompt: StreamPrompt) -> RenderedTurn:
    return RenderedTurn(array("i", prompt.token_ids), prompt.query_index)
