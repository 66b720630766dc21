"""Requests as the tests write them."""

from collections.abc import Iterable, Sequence
from typing import Any

from guardwire.v1 import moderation_pb2 as pb

PROMPT = "How do I bake bread?"
"""What the person asks, unless a test says otherwise."""


def user(content: str = PROMPT) -> pb.Message:
    return pb.Message(role=pb.ROLE_USER, content=content)


def assistant(content: str) -> pb.Message:
    return pb.Message(role=pb.ROLE_ASSISTANT, content=content)


def system(content: str) -> pb.Message:
    return pb.Message(role=pb.ROLE_SYSTEM, content=content)


def opening(messages: Sequence[pb.Message] | None = None, **options: Any) -> pb.ModerateStreamRequest:  # noqa: ANN401 options of all types
    """Opens a stream with messages, by default one of the user's."""
    conversation = pb.Conversation(messages=[user()] if messages is None else messages)
    return pb.ModerateStreamRequest(open=pb.StreamOpen(conversation=conversation, **options))


def templated_opening(token_ids: Iterable[int], **options: Any) -> pb.ModerateStreamRequest:  # noqa: ANN401
    prompt = pb.TemplatedPrompt(token_ids=token_ids)
    return pb.ModerateStreamRequest(open=pb.StreamOpen(templated=prompt, **options))


def tokens(token_ids: Iterable[int], start_index: int | None = None) -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(tokens=pb.PushTokens(token_ids=token_ids, start_index=start_index))


def text(content: str, *, flush: bool = False) -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(text=pb.PushText(text=content, flush=flush))


def rollback(num_tokens_kept: int) -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(rollback=pb.Rollback(num_tokens_kept=num_tokens_kept))


def user_turn(content: str) -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(user_turn=pb.UserTurn(content=content))


def user_tokens(token_ids: Iterable[int]) -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(user_turn=pb.UserTurn(tokens=pb.UserTokens(token_ids=token_ids)))


def finish() -> pb.ModerateStreamRequest:
    return pb.ModerateStreamRequest(finish=pb.Finish())


def answer_ids(num_tokens: int, seed: int = 0) -> list[int]:
    """Ids of plain tokens, other ones for another seed."""
    return [(37 * index + 11 * seed + index * index) % 300 for index in range(num_tokens)]
