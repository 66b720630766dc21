"""From what callers give to protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from guardwire.conversation import Message, Messages, as_messages, checked_text
from guardwire.enums import ModelKind
from guardwire.errors import invalid_request
from guardwire.options import ModerateOptions
from guardwire.v1 import moderation_pb2 as pb


class SingleToken(NamedTuple):
    """A push of one token: no message yet, since a call that many streams share packs it with theirs."""

    token_id: int
    start_index: int


Request = pb.ModerateStreamRequest | SingleToken
"""What a stream asks for; `message` makes it what goes on the wire."""


def classify_request(messages: Messages, model: str, policy: str) -> pb.ClassifyRequest:
    """Raises InvalidRequest when a message has none of the accepted forms."""
    return pb.ClassifyRequest(messages=_messages(as_messages(messages)), model=model, policy=policy)


def open_request(messages: Messages | None, options: ModerateOptions) -> pb.ModerateStreamRequest:
    """Raises InvalidRequest when there is not exactly one prompt, or a message has none of the accepted forms."""
    if (messages is None) == (options.token_ids is None):
        raise invalid_request("give either messages or token_ids", "open.prompt")
    stream_open = pb.StreamOpen(
        thinking=pb.Thinking.ValueType(options.thinking.value),
        input=pb.InputKind.ValueType(options.input.value),
        tokenizer_fingerprint=options.tokenizer_fingerprint,
        model=options.model,
        policy=options.policy,
        update_mode=pb.UpdateMode.ValueType(options.update_mode.value),
        end_on_block=options.end_on_block,
        observe_only=options.observe_only,
        context_overflow=pb.ContextOverflow.ValueType(options.context_overflow.value),
        resume_from=options.resume_from,
    )
    if messages is not None:
        stream_open.conversation.messages.extend(_messages(as_messages(messages)))
    elif options.token_ids is not None:
        field = "open.templated.token_ids"
        stream_open.templated.CopyFrom(pb.TemplatedPrompt(token_ids=token_ids(options.token_ids, field)))
    return pb.ModerateStreamRequest(open=stream_open)


def push_tokens(ids: Sequence[int], start_index: int) -> Request:
    """The next tokens; ids as `token_ids` checked them."""
    if len(ids) == 1:
        return SingleToken(ids[0], start_index)
    return pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=ids, start_index=start_index))


def message(request: Request) -> pb.ModerateStreamRequest:
    """The message that says it all by itself."""
    if isinstance(request, SingleToken):
        tokens = pb.PushTokens(token_ids=[request.token_id], start_index=request.start_index)
        return pb.ModerateStreamRequest(tokens=tokens)
    return request


def push_text(text: str, flush: bool) -> pb.ModerateStreamRequest:
    """The next piece of text; raises InvalidRequest when UTF-8 cannot carry it."""
    return pb.ModerateStreamRequest(text=pb.PushText(text=checked_text(text, "text.text"), flush=flush))


def rollback(num_tokens_kept: int) -> pb.ModerateStreamRequest:
    """Forgets the newest tokens."""
    return pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=num_tokens_kept))


def user_turn(content: str | Iterable[int]) -> pb.ModerateStreamRequest:
    """The user's next message; raises InvalidRequest when it is neither text nor token ids."""
    if isinstance(content, str):
        return pb.ModerateStreamRequest(user_turn=pb.UserTurn(content=checked_text(content, "user_turn.content")))
    tokens = pb.UserTokens(token_ids=token_ids(content, "user_turn.tokens.token_ids"))
    return pb.ModerateStreamRequest(user_turn=pb.UserTurn(tokens=tokens))


def finish() -> pb.ModerateStreamRequest:
    """Asks for the summary."""
    return pb.ModerateStreamRequest(finish=pb.Finish())


def tokenizer_request(model_kind: ModelKind) -> pb.GetTokenizerRequest:
    """Asks for a tokenizer."""
    return pb.GetTokenizerRequest(model_kind=pb.ModelKind.ValueType(model_kind.value))


def token_ids(ids: Iterable[int], field: str) -> list[int]:
    """Raises InvalidRequest when something is not an id that the wire can carry."""
    checked = []
    for position, token_id in enumerate(ids):
        try:
            checked.append(int(token_id.__index__()))
        except (AttributeError, TypeError):
            raise invalid_request(f"{field}[{position}] is {token_id!r}, not a token id", field) from None
        if not 0 <= checked[-1] < 1 << 32:
            raise invalid_request(f"{field}[{position}] is {token_id}, not a token id", field)
    return checked


def _messages(messages: Iterable[Message]) -> list[pb.Message]:
    return [pb.Message(role=pb.Role.ValueType(message.role.value), content=message.content) for message in messages]
