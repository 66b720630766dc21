from __future__ import annotations

from typing import Any

import pytest

from guardwire import InvalidRequest, Message, MessageLike, Role
from guardwire.conversation import as_messages


def test_all_forms_mean_the_same() -> None:
    message = Message(Role.USER, "hi")
    forms: list[MessageLike] = [message, {"role": "user", "content": "hi"}, ("user", "hi"), (Role.USER, "hi")]
    assert as_messages(forms) == [message] * 4
    assert as_messages("hi") == [message]
    assert as_messages(iter([("system", "be kind"), ("assistant", "ok")])) == [
        Message(Role.SYSTEM, "be kind"),
        Message(Role.ASSISTANT, "ok"),
    ]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (("robot", "hi"), "messages[1].role"),
        (("User", "hi"), "messages[1].role"),
        ((None, "hi"), "messages[1].role"),
        (("user", 3), "messages[1].content"),
        (("user", "\ud800"), "messages[1].content"),
        ({"role": "user", "content": [{"type": "text", "text": "hi"}]}, "messages[1].content"),
        ({"role": "user"}, "messages[1]"),
        ({"role": "user", "content": "hi", "name": "x"}, "messages[1]"),
        (("user", "hi", "there"), "messages[1]"),
        ("user", "messages[1]"),
    ],
)
def test_what_is_no_message_is_named(message: Any, field: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequest) as caught:
        as_messages([("user", "hi"), message])
    assert caught.value.field == field
    assert caught.value.violations[0].description == caught.value.message


def test_a_plain_string_must_be_text() -> None:
    with pytest.raises(InvalidRequest, match="not Unicode"):
        as_messages("\ud800")
