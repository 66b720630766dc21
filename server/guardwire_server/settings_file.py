"""YAML files of settings, read strictly: every mistake with its line and key, and all mistakes at once."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from guardwire_server.core.errors import StartupError
from guardwire_server.strict_yaml import Document, compose, is_text, scalar

MAX_MISTAKES_TOLD = 100
MAX_KEY_CHARACTERS = 64
"""Of a key in a message."""

M = TypeVar("M", bound=BaseModel)

Place = tuple[int | str, ...]
"""Keys and indices from the top of the file."""

_PROBLEMS = {
    "missing": "is missing",
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text; a number, true, false or null is text in quotes",
}
_INPUT_SHOULD = re.compile(r"^(Input|String|List|Tuple|Dictionary|Set) should ")


@dataclass(frozen=True, slots=True)
class _Mistake:
    line: int
    path: str
    problem: str


def read_settings(path: Path, model: type[M]) -> M:
    """Reads a file as a pydantic model; the model says whether keys that it does not know are mistakes.

    Raises:
        StartupError: A line for each mistake: `FILE:LINE: key.path: what is wrong`.
    """
    reading = _Reading(compose(path))
    try:
        settings = model.model_validate(reading.content)
    except ValidationError as error:
        reading.add_mistakes(error, model)
    else:
        if not reading.mistakes:
            return settings
    raise _refusal(path, reading.mistakes)


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a file, which may be empty, as plain values by their keys, for somebody else to check.

    Raises:
        StartupError: A line for each mistake, as of `read_settings`.
    """
    reading = _Reading(compose(path, may_be_empty=True))
    if reading.mistakes:
        raise _refusal(path, reading.mistakes)
    return dict(reading.content)


def _refusal(path: Path, mistakes: Sequence[_Mistake]) -> StartupError:
    in_order = sorted(mistakes, key=lambda mistake: mistake.line)
    lines = [_line(path, mistake) for mistake in in_order[:MAX_MISTAKES_TOLD]]
    if len(in_order) > MAX_MISTAKES_TOLD:
        lines.append(f"{path}: there are more mistakes than these {MAX_MISTAKES_TOLD}")
    return StartupError("\n".join(lines))


def suggest(key: str, known: Sequence[str]) -> str:
    """What to add to the message about a key that nobody knows."""
    near = difflib.get_close_matches(key[:MAX_KEY_CHARACTERS], known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are {', '.join(known)}" if known else ""


class _Reading:
    """One file's content in plain values, and the mistakes in it."""

    def __init__(self, document: Document) -> None:
        self._root = document.root
        self._refused = document.refused
        self._dropped: set[Place] = set()  # values that were not taken: nothing more is to be said about them
        self.mistakes: list[_Mistake] = []
        self.content = self._plain(document.root, ())

    def add_mistakes(self, error: ValidationError, model: type[BaseModel]) -> None:
        """Adds what a model found wrong in the content."""
        items = error.errors(include_url=False, include_input=False, include_context=False)
        for item in items[: MAX_MISTAKES_TOLD + 1]:  # to find the place of each takes time
            kind, place = item["type"], item["loc"]
            if any(place[:length] in self._dropped for length in range(1, len(place) + 1)):
                continue
            line, found = _find(self._root, place, is_key=kind == "extra_forbidden")
            told = (*found, place[-1]) if kind == "missing" else found
            if kind == "extra_forbidden":
                problem = f"there is no such key{suggest(str(place[-1]), _known_keys(model, place[:-1]))}"
            else:
                message = item["msg"].removeprefix("Value error, ").replace(" after validation", "")
                problem = _PROBLEMS.get(kind) or _INPUT_SHOULD.sub("must ", message)
            self.mistakes.append(_Mistake(line, _path(told), problem))

    def _plain(self, node: yaml.Node, place: Place) -> Any:  # noqa: ANN401 whatever the file says
        is_refused = id(node) in self._refused
        if is_refused:
            self._refuse(node, place, self._refused[id(node)])
        if isinstance(node, yaml.MappingNode):
            return dict(self._entries(node, place))
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*place, index)) for index, item in enumerate(node.value)]
        if is_refused or not isinstance(node, yaml.ScalarNode):
            self._dropped.add(place)
            return None
        return scalar(node)

    def _entries(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if id(key) in self._refused:
                self._refuse(key, (*place, name), self._refused[id(key)])
            elif not is_text(key):
                self._refuse(key, (*place, name), "keys must be text; put it in quotes")
            elif name in lines:
                self._refuse(key, (*place, name), f"is there twice, first in line {lines[name]}")
            else:
                yield name, self._plain(value, (*place, name))
            lines.setdefault(name, key.start_mark.line + 1)

    def _refuse(self, node: yaml.Node, place: Place, problem: str) -> None:
        self.mistakes.append(_Mistake(node.start_mark.line + 1, _path(place), problem))


def _find(root: yaml.Node, place: Sequence[int | str], *, is_key: bool) -> tuple[int, Place]:
    """The line of what stands at a place, or of what should hold it, and how far the place exists.

    A mapping's or list's line is that of its key. Parts that are no keys (pydantic's names for the branches of a union,
    and `[key]`) are passed over.
    """
    node, found = root, []
    line = root.start_mark.line + 1
    for part in place:
        child = _child(node, part)
        if child:
            line, node = child
            found.append(part)
    if isinstance(node, yaml.ScalarNode) and not is_key and place[-1:] != ("[key]",):
        line = node.start_mark.line + 1
    return line, tuple(found)


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    """The line of the key or item, and its value."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == part:
                return key.start_mark.line + 1, value
    return None


def _known_keys(annotation: Any, place: Sequence[int | str]) -> list[str]:  # noqa: ANN401 any type of a field
    """The keys of the model that stands at a place of a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        if not place:
            return list(fields)
        return _known_keys(fields[str(place[0])], place[1:]) if place[0] in fields else []
    arguments = get_args(annotation)
    if get_origin(annotation) in (dict, Mapping, list, tuple, Sequence):
        return _known_keys(arguments[-1 if len(arguments) == 2 else 0], place[1:])
    return next((keys for argument in arguments if (keys := _known_keys(argument, place))), [])


def _path(place: Place) -> str:
    return ".".join(_name(part) for part in place)


def _name(part: int | str) -> str:
    name = str(part)
    if len(name) > MAX_KEY_CHARACTERS:
        name = f"{name[:MAX_KEY_CHARACTERS]}…"
    return name if re.fullmatch(r"[\w…-]+", name) else json.dumps(name)


def _line(path: Path, mistake: _Mistake) -> str:
    return f"{path}:{mistake.line}: {mistake.path}{': ' if mistake.path else ''}{mistake.problem}"
