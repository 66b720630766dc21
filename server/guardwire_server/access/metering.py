"""Taking a tenant's tokens: those that it pushes, and those that its text becomes.

Ids are counted as they come. How many tokens text is, only its tokenizer knows: prompts and user turns are rendered to
be counted before the stream gets them; a stream's text is counted where it is tokenised, by a renderer around the
model's. Each token is taken once, before it is queued to be judged; what the server reads again on its own account
(after an eviction, or when the context slides) is not.
"""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from guardwire_server.access.usage import TenantUsage, current_usage
from guardwire_server.core.events import CallerEvent, OpenRequested, RenderedTurn, Thinking, TokensPushed, UserTurnAdded
from guardwire_server.core.ports import TextStream, TurnRenderer, is_long
from guardwire_server.core.verdict import Message


class Meter:
    """Takes the tokens of a call's messages, those of pushed text excepted. Owner: the call. Thread: the event loop."""

    def __init__(self, usage: TenantUsage, renderer: TurnRenderer) -> None:
        self._usage = usage
        self._renderer = renderer

    async def take_prompt(self, event: OpenRequested) -> OpenRequested:
        """Takes the tokens of a stream's first message; returns it, with its prompt as it was rendered to be counted.

        Raises:
            Overloaded: They come too fast.
            InvalidField: They are more than the tenant may ever push at once.
        """
        prompt = event.prompt
        if not self._usage.is_metered:
            return event
        if isinstance(prompt, array):
            self._usage.take_tokens(len(prompt), "open.templated.token_ids")
            return event
        if isinstance(prompt, tuple):
            if is_long(prompt):
                prompt = await asyncio.to_thread(self._renderer.prompt, prompt, event.thinking)
            else:
                prompt = self._renderer.prompt(prompt, event.thinking)
        self._usage.take_tokens(len(prompt.token_ids), "open.conversation")
        return replace(event, prompt=prompt)

    def take_token(self) -> None:
        """Takes one token that is pushed; raises as `take_prompt`."""
        if self._usage.is_metered:
            self._usage.take_tokens(1, "tokens.token_ids")

    def take_pushed(self, event: CallerEvent) -> None:
        """Takes the tokens of a later message; raises as `take_prompt`."""
        if not self._usage.is_metered:
            return
        if isinstance(event, TokensPushed):
            self._usage.take_tokens(len(event.token_ids), "tokens.token_ids")
        elif isinstance(event, UserTurnAdded):
            field = "user_turn.content" if isinstance(event.content, str) else "user_turn.tokens.token_ids"
            # How it closes the answer before it and begins the next one depends on the stream, by a token or a few.
            turn = self._renderer.user_turn(event.content, Thinking.OFF, ())
            self._usage.take_tokens(len(turn.token_ids), field)


class MeteredRenderer:
    """A `TurnRenderer` whose text streams take their tokens from the tenant of the call that opens them."""

    def __init__(self, renderer: TurnRenderer) -> None:
        self._renderer = renderer
        self.scaffold = renderer.scaffold

    def prompt(self, messages: Sequence[Message], thinking: Thinking) -> RenderedTurn:
        """The conversation up to the answer."""
        return self._renderer.prompt(messages, thinking)

    def user_turn(self, content: "str | array[int]", thinking: Thinking, answer_tail: Sequence[int]) -> RenderedTurn:
        """What closes the present answer and opens the next one."""
        return self._renderer.user_turn(content, thinking, answer_tail)

    def find_query_index(self, token_ids: Sequence[int]) -> int | None:
        """Where the last user message of a rendered template closes."""
        return self._renderer.find_query_index(token_ids)

    def text_stream(self) -> TextStream:
        """A new incremental tokenizer."""
        stream, usage = self._renderer.text_stream(), current_usage.get()
        return _MeteredTextStream(stream, usage) if usage else stream


class _MeteredTextStream:
    """A `TextStream` that takes a tenant's tokens; when there are none left, what it was given is lost."""

    def __init__(self, stream: TextStream, usage: TenantUsage) -> None:
        self._stream = stream
        self._usage = usage

    def push(self, text: str) -> Sequence[tuple[int, int]]:
        return self._taken(self._stream.push(text))

    def flush(self) -> Sequence[tuple[int, int]]:
        return self._taken(self._stream.flush())

    def restart(self, offset_bytes: int) -> None:
        self._stream.restart(offset_bytes)

    def _taken(self, tokens: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        self._usage.take_tokens(len(tokens), "text.text")
        return tokens


class ConversationRenderer(Protocol):
    """The generative model's chat template and tokenizer, as engine.classifier has it."""

    def conversation(self, messages: Sequence[Message]) -> "array[int]":
        """The templated prompt that asks about the last message."""
        ...

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, control tokens left out."""
        ...


class MeteredConversations:
    """A `ConversationRenderer` that takes the tokens of what it renders from the tenant whose call asks for it."""

    def __init__(self, renderer: ConversationRenderer) -> None:
        self._renderer = renderer

    def conversation(self, messages: Sequence[Message]) -> "array[int]":
        """The templated prompt that asks about the last message."""
        token_ids, usage = self._renderer.conversation(messages), current_usage.get()
        if usage:
            usage.take_tokens(len(token_ids), "messages")
        return token_ids

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, control tokens left out."""
        return self._renderer.text(token_ids)
