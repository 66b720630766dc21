"""What callers may give as a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from guardwire.enums import Role
from guardwire.errors import invalid_request


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


MessageLike = Message | Mapping[str, str] | tuple[str | Role, str]
"""A `Message`, `{"role": "user", "content": "…"}` or `("user", "…")`."""

Messages = str | Iterable[MessageLike]
"""Messages, oldest first; a plain string is one user message."""


def as_messages(messages: Messages) -> list[Message]:
    """Reads a conversation in any of the accepted forms.

    Raises:
        InvalidRequest: A message has none of the accepted forms; `field` names it.
    """
    if isinstance(messages, str):
        return [Message(Role.USER, checked_text(messages, "messages[0].content"))]
    return [_as_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _as_message(message: object, field: str) -> Message:
    if isinstance(message, Message):
        role, content = message.role, message.content
    elif isinstance(message, Mapping):
        if set(message) != {"role", "content"}:
            raise invalid_request(f'{field} must have the keys "role" and "content", and no others', field)
        role, content = message["role"], message["content"]
    elif isinstance(message, tuple) and len(message) == 2:
        role, content = message
    else:
        raise invalid_request(f"{field} is {type(message).__name__}: give a Message, a dict or (role, content)", field)
    if not isinstance(content, str):
        raise invalid_request(f"{field}.content must be a string, not {type(content).__name__}", f"{field}.content")
    return Message(_as_role(role, f"{field}.role"), checked_text(content, f"{field}.content"))


def checked_text(text: str, field: str) -> str:
    """Gives the text back; raises InvalidRequest when UTF-8 cannot carry it (it holds lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid_request(f"{field} is not Unicode text: {error}", field) from None
    return text


def _as_role(role: object, field: str) -> Role:
    if isinstance(role, Role):
        return role
    for known in Role:
        if role == known.name.lower():
            return known
    raise invalid_request(f'{field} is {role!r}: it must be "system", "user" or "assistant"', field)
