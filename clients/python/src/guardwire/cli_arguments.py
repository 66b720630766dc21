"""What reads single arguments of the command line; what it refuses ends the command with the exit code of argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from guardwire.errors import InvalidRequest
from guardwire.server_address import check_target


def number(kind: Callable[[str], float], maximum: float) -> Callable[[str], float]:
    """What reads a number above 0 and up to a maximum."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value <= maximum:
            what = "a whole number from 1" if kind is int else "a number above 0 and up"
            raise argparse.ArgumentTypeError(f"must be {what} to {maximum:,}, not {text!r}")
        return value

    return convert


def target(text: str) -> str:
    """What reads the address of a server."""
    try:
        check_target(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(error.message.removeprefix("target: ")) from None
    return text
