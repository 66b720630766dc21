"""Tells what is wrong with settings: by the name that their source gives them, in words for operators."""

import difflib
from collections.abc import Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def describe(error: ValidationError, written: Mapping[str, tuple[str, str]], known: Sequence[str]) -> str:
    """All mistakes in one line.

    Args:
        error: What the settings' model found.
        written: By a setting's key, its name as its source writes it, and the source.
        known: The keys of all settings.
    """
    lines = []
    for item in error.errors():
        if not item["loc"]:  # of several settings together, which the message names
            lines.append(_message(item))
            continue
        key = str(item["loc"][0])
        name, source = written.get(key, (key, "the defaults"))
        lines.append(f"{name} (from {source}): {_problem(item, key, name, known)}")
    return "; ".join(lines)


def _problem(item: ErrorDetails, key: str, name: str, known: Sequence[str]) -> str:
    if item["type"] == "extra_forbidden":
        return f"there is no such setting{_suggestion(key, name, known)}"
    if item["input"] is None:
        return "is empty"
    if item["type"] in ("bool_parsing", "bool_type"):
        return f"must be true or false, found {item['input']!r}"
    return _message(item)


def _message(item: ErrorDetails) -> str:
    return item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _suggestion(key: str, name: str, known: Sequence[str]) -> str:
    """The nearest setting, written as the wrong one was; nothing where none is near."""
    near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
    prefix = name[: len(name) - len(key)]  # of a variable
    return f"; did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else ""
