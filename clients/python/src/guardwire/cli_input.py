"""Where the command finds the text and the conversation that it sends."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from guardwire.conversation import Message, as_messages


class InputError(Exception):
    """What the user gave cannot be used, or not judged; the message says why."""


class UsageError(InputError):
    """The command line is wrong: its arguments do not go together, or one is missing."""


def add_text_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds TEXT and --file.

    Args:
        parser: Where to.
        what: What the text is, for the help.
    """
    parser.add_argument("text", nargs="?", metavar="TEXT", help=f"{what}; `-` or nothing: standard input")
    parser.add_argument("--file", type=Path, help=f"a file with {what}, UTF-8")


def read_text(arguments: argparse.Namespace) -> str:
    """The text from TEXT, --file or standard input; a line break at the end of the latter two is not part of it.

    Raises:
        UsageError: There is none, or there are two.
        InputError: It cannot be read.
    """
    if arguments.file is not None:
        if arguments.text is not None:
            raise UsageError("give TEXT or --file, not both")
        return read_file(arguments.file).removesuffix("\n")
    if arguments.text not in (None, "-"):
        return str(arguments.text)
    if sys.stdin.isatty():
        raise UsageError("no text: give TEXT, --file or something on standard input")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8") from None


def read_messages(path: Path) -> list[Message]:
    """The conversation in a JSON file: a list of `{"role", "content"}`, or an object with such a list as `messages`.

    Raises:
        InputError: It cannot be read, or is not JSON of that form.
        InvalidRequest: A message has a key or a role that does not exist.
    """
    try:
        document = json.loads(read_file(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    messages = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(messages, list):
        raise InputError(f'{path} must hold a list of messages, or an object with one as "messages"')
    return as_messages(messages)


def read_file(path: Path) -> str:
    """A file's text; raises InputError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8") from None
