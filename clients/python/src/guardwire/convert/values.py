"""From single protobuf values to Python's.

An enum number that this version does not know fails loudly, except a category: a newer server may name new harms, and
`Category.UNKNOWN` keeps them visible.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf import duration_pb2

from guardwire.errors import broken_contract

_Member = TypeVar("_Member", bound=enum.Enum)


def optional(kind: type[_Member], number: int) -> _Member | None:
    """The member with a number; None for 0, which is how the wire leaves an enum out.

    Raises:
        ServerFault: The server sent a number that this version does not know.
    """
    if number == 0:
        return None
    try:
        return kind(number)
    except ValueError:
        raise broken_contract(f"the server sent {kind.__name__} {number}, which this client does not know") from None


def required(kind: type[_Member], number: int) -> _Member:
    """The member with a number.

    Raises:
        ServerFault: The server left it out, or sent a number that this version does not know.
    """
    member = optional(kind, number)
    if member is None:
        raise broken_contract(f"the server left out {kind.__name__}")
    return member


def members(kind: type[_Member], numbers: Iterable[int]) -> tuple[_Member, ...]:
    """The members with these numbers; raises as `required` does."""
    return tuple(required(kind, number) for number in numbers)


def seconds(duration: duration_pb2.Duration) -> float:
    """The length of a duration; 0 when the server left it out."""
    return duration.seconds + duration.nanos / 1e9
