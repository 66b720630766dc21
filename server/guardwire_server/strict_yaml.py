"""YAML, composed strictly: one document of plain values, without anchors, aliases and tags, and with its lines.

A scalar without quotes is a number, true, false or null as in JSON, and text otherwise (the core schema of YAML 1.2,
without octal numbers and infinities): `no`, `12:30` and `2026-01-01` are text here, as they look. Anchors, aliases and
tags are refused: a file that is reviewed should say what it means where it says it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from guardwire_server.core.errors import StartupError

MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 32
"""Mappings and lists within each other; reading one is recursive."""

_TOO_DEEP = f"mappings and lists more than {MAX_DEPTH} levels deep"


@dataclass(frozen=True, slots=True)
class Document:
    """A file's nodes; `refused` says by a node's identity what is not taken about it."""

    path: Path
    root: yaml.MappingNode
    refused: Mapping[int, str]


def compose(path: Path, *, may_be_empty: bool = False) -> Document:
    """Reads a file; an empty one is a mapping without keys where it may be empty.

    Raises:
        StartupError: `FILE:LINE: what is wrong`, where nothing can be made of the file.
    """
    text = _read_text(path)
    loader = None
    try:
        loader = _StrictLoader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise StartupError(f"{path}:{line}: a character that YAML does not allow: U+{error.character:04X}") from None
    except yaml.MarkedYAMLError as error:
        raise StartupError(_describe_syntax(path, error)) from None
    except (ValueError, OverflowError):  # an escape beyond Unicode
        line = loader.line + 1 if loader else 1
        raise StartupError(f"{path}:{line}: a character that does not exist") from None
    if root is None and may_be_empty:
        return Document(path, yaml.MappingNode("tag:yaml.org,2002:map", []), {})
    if root is None:
        raise StartupError(f"{path}:1: the file is empty")
    if not isinstance(root, yaml.MappingNode):
        raise StartupError(f"{path}:{root.start_mark.line + 1}: the file must be a mapping of keys to values")
    return Document(path, root, loader.refused)


def is_text(node: yaml.Node) -> bool:
    """Whether a node is a scalar that reads as text."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _STR


def scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    """The value of a scalar."""
    text: str = node.value
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if node.tag == _INT:
        return int(text)
    return float(text) if node.tag == _FLOAT else text


class _StrictLoader(yaml.BaseLoader):
    """Composes nodes and notes in `refused`, by a node's identity, what is not taken about it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.refused: dict[int, str] = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 PyYAML's signature
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            node: yaml.Node | None = yaml.ScalarNode(_NULL, "", event.start_mark)  # type: ignore[arg-type]
            self.refused[id(node)] = "aliases are not allowed: write the value out"
            return node
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self.refused[id(node)] = "anchors are not allowed"
        elif event.tag is not None:
            self.refused[id(node)] = "tags are not allowed"
        return node


_STR, _NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float"))
_NUMBER_STARTS = list("-+.0123456789")
# In the order in which they are tried. More digits than any limit has are text, which a model then refuses as a number.
for _tag, _pattern, _starts in (
    (_NULL, r"(~|null|Null|NULL|)\Z", [*"~nN", ""]),
    (_BOOL, r"(true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    (_INT, r"[-+]?[0-9]{1,18}\Z", _NUMBER_STARTS),
    (_FLOAT, r"[-+]?(\.[0-9]{1,99}|[0-9]{1,99}\.[0-9]{0,99})([eE][-+]?[0-9]{1,3})?\Z", _NUMBER_STARTS),
    (_FLOAT, r"[-+]?[0-9]{1,99}[eE][-+]?[0-9]{1,3}\Z", _NUMBER_STARTS),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern), _starts)


def read_bounded(path: Path) -> bytes:
    """The content of a file of settings; StartupError that names the file if it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise StartupError(f"{path}: the file is too large, the limit is {MAX_FILE_BYTES} bytes")
    return content


def _read_text(path: Path) -> str:
    content = read_bounded(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StartupError(f"{path}:{line}: not UTF-8") from None


def _describe_syntax(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if error.problem == "but found another document":
        return f"{path}:{line}: a second document begins here, only one is allowed"
    if error.problem == _TOO_DEEP:
        return f"{path}:{line}: {_TOO_DEEP}"
    began = error.context_mark.line + 1 if error.context_mark else line
    context = f" {error.context} from line {began} on" if error.context and began != line else ""
    return f"{path}:{line}: not YAML: {error.problem}{context}"
