"""Texts and token ids that are told from all others, and the search for them in what a server lets out."""

import re

from google.protobuf.message import Message

_STEM = "Zq7Vx"

UNKNOWN_ID = 3_141_592_653
"""An id of no vocabulary, and a number that nothing else is."""

MARKED_IDS = (389, 293, 387, 291, 385)
"""Ids of the small checkpoints' vocabulary, in an order that nothing else has."""


def marker(place: str) -> str:
    """A text that names where it was planted. It begins with what is searched for, so its beginning is found too."""
    return f"{_STEM}-{place}-{_STEM}"


def find_markers(content: str) -> list[str]:
    """The surroundings of every marker in a text: as it is, in hexadecimal, as an id or as three ids in a row."""
    # Numbers of a list may be lines apart where OTLP's messages are printed, but only with brackets and names between.
    rows = [r"\D{1,200}".join(map(str, MARKED_IDS[start : start + 3])) for start in range(len(MARKED_IDS) - 2)]
    patterns = [_STEM, _STEM.encode().hex(), *(rf"(?<!\d){number}(?!\d)" for number in (str(UNKNOWN_ID), *rows))]
    found = re.compile("|".join(patterns), re.IGNORECASE)
    return [content[max(0, match.start() - 100) : match.end() + 60] for match in found.finditer(content)]


def find_markers_in(message: Message) -> list[str]:
    """The same in a protobuf message, printed and as the bytes that were sent."""
    return find_markers(str(message)) + find_markers(message.SerializeToString().decode("latin-1"))
