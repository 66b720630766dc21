"""How the command prints: plain lines, coloured on a terminal where rich is installed, and JSON."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from collections.abc import Callable
from typing import Any, TextIO

from guardwire.enums import Action, RiskLevel

STYLES: dict[RiskLevel | Action | None, str] = {
    RiskLevel.SAFE: "green",
    RiskLevel.CONTROVERSIAL: "yellow",
    RiskLevel.UNSAFE: "red",
    Action.ALLOW: "green",
    Action.FLAG: "yellow",
    Action.BLOCK: "bold red",
}


ONLY_OBSERVED = " (only observed)"
"""Behind an action that nobody enforces."""


class Screen:
    """Where lines go."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._print_coloured = _coloured(output) if output.isatty() else None

    def line(self, text: str, style: str = "") -> None:
        """Prints a line.

        Args:
            text: The line.
            style: Its style in rich's words; only terminals show it.
        """
        if self._print_coloured is not None:
            self._print_coloured(text, style)
        else:
            print(text, file=self._output, flush=True)

    def json(self, document: object, *, indent: int | None = None) -> None:
        """Prints a result as JSON: enums by their names in lower case, times as ISO 8601."""
        print(json.dumps(as_json(document), ensure_ascii=False, indent=indent), file=self._output, flush=True)


def as_json(value: object) -> Any:  # noqa: ANN401
    """A result as what JSON can carry."""
    match value:
        case enum.Enum():
            return value.name.lower()
        case datetime.datetime():
            return value.isoformat()
        case tuple() | list():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value):
            return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def words(member: enum.Enum | None, nothing: str = "none") -> str:
    """An enum member for people."""
    return nothing if member is None else member.name.lower().replace("_", " ")


def quoted(text: str) -> str:
    """A text on one line, in quotes."""
    return json.dumps(text, ensure_ascii=False)


def _coloured(output: TextIO) -> Callable[[str, str], None] | None:
    try:
        from rich.console import Console
    except ImportError:  # colours are all that is lost
        return None
    console = Console(file=output, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return lambda text, style: console.print(text, style=style or None)
