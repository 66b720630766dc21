r"""Tokenises a text that arrives in pieces, giving the ids that the whole text would give.

Theory of operation. The tokenizer normalises (NFC), cuts the text into pieces by Qwen's split pattern, and turns each
piece into tokens by itself. So a token is settled once neither its piece nor the characters in it can change, and only
the text behind the last settled piece is kept and tokenised again with what comes next:

1. The last piece may grow: it is held.
2. How a run of white space is cut depends on what follows it (`\s*[\r\n]+`, `\s+(?!\S)`), so a run at the end is
   held whole. Every other piece ended because of the character after it, which is already there.
3. A combining character may still change what is before it, and the text is never cut in front of one. Composition
   keeps a character a letter, a number, white space or none of them, so it does not move the cuts of rule 1.
"""

import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise

from guardwire_server.model.tokens import Tokenizer

_FIRST_COMBINING = "\u0300"
_MAX_CHARACTER_BYTES = 4

_COMPOSING_STARTERS = frozenset(
    "\u09be\u09d7\u0b3e\u0b56\u0b57\u0bbe\u0bd7\u0cc2\u0cd5\u0cd6\u0d3e\u0d57\u0dcf\u0ddf\u102e\u1b35"
    "\u0f73\u0f75\u0f81"
    "\U00011127\U0001133e\U00011357\U000114b0\U000114ba\U000114bd\U000115af\U00011930"
    "\U00016d63\U00016d67" + "".join(map(chr, [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]))
)
"""Characters of combining class 0 that change or reorder with what is before them, conjoining Hangul included.

Source: Unicode 16, UnicodeData.txt: second characters of canonical compositions, and the three Tibetan vowel signs
that decompose to combining characters. A test compares it with Python's tables.
"""


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token of a text.

    Attributes:
        id: Its id.
        end_offset_bytes: How much of the text the tokens up to this one hold, in bytes of UTF-8 of the text as it was
            pushed (before normalisation). Whole characters only: a token that ends inside a character, or inside
            characters that normalisation joins, ends before them.
    """

    id: int
    end_offset_bytes: int


class IncrementalTokenizer:
    """Tokens of one text stream, in order. Owned by its session; holds at most `max_held_chars` characters."""

    def __init__(self, tokenizer: Tokenizer, *, start_offset_bytes: int = 0, max_held_chars: int = 1024) -> None:
        """Starts at the beginning of a text.

        Args:
            tokenizer: The vocabulary.
            start_offset_bytes: What offsets count from.
            max_held_chars: A piece that grows longer than this is settled as if the text ended there. Its ids may
                differ from those of the whole text, but no text waits forever.
        """
        self._tokenizer = tokenizer
        self._max_held_chars = max_held_chars
        self._offset_bytes = start_offset_bytes
        self._held = ""

    @property
    def offset_bytes(self) -> int:
        """Where the settled text ends: the end offset of the newest token."""
        return self._offset_bytes

    @property
    def held_text(self) -> str:
        """The text that was pushed and has given no token yet."""
        return self._held

    def push(self, text: str) -> list[TextToken]:
        """Takes the next piece of text and returns the tokens that it settles; often none.

        Args:
            text: Valid Unicode. Protobuf strings always are; a lone surrogate raises UnicodeEncodeError and leaves the
                stream as it was.
        """
        draft = _Draft(self._held + text, self._tokenizer)
        num_settled = draft.count_settled()
        if draft.count_chars_after(num_settled) > self._max_held_chars:
            num_settled = len(draft.ids)
        return self._settle(draft, num_settled)

    def flush(self) -> list[TextToken]:
        """Returns the tokens of the held text as if the text ended here. What is pushed next is a text of its own."""
        draft = _Draft(self._held, self._tokenizer)
        return self._settle(draft, len(draft.ids))

    def restart(self, offset_bytes: int) -> None:
        """Forgets the held text: what is pushed next is a text of its own.

        Args:
            offset_bytes: What its offsets count from: after a rollback, the end offset of the newest token that stays.
        """
        self._offset_bytes = offset_bytes
        self._held = ""

    def _settle(self, draft: "_Draft", num_settled: int) -> list[TextToken]:
        start = self._offset_bytes
        tokens = [TextToken(draft.ids[i], start + draft.end_bytes(i)) for i in range(num_settled)]
        num_bytes = draft.end_bytes(num_settled - 1)
        self._offset_bytes = start + num_bytes
        self._held = draft.data[num_bytes:].decode()
        return tokens


class _Draft:
    """The tokens that a text would have if it ended here. Offsets are bytes of UTF-8."""

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.data = text.encode()
        self.ids, self._pieces = tokenizer.encode_plain_pieces(text)
        self._normalized_ends = list(accumulate(tokenizer.plain_byte_lengths(self.ids)))
        self._num_bytes_before_space = len(text.rstrip().encode())
        is_normalized = tokenizer.normalize(text) == text
        self._alignment = _Unchanged(self.data) if is_normalized else _Changed(text, tokenizer)

    def end_bytes(self, index: int) -> int:
        """How many bytes of the text the tokens up to `index` hold whole; 0 for the index -1."""
        return self._alignment.original(self._normalized_end(index))

    def count_settled(self) -> int:
        """How many tokens stay the same whatever text comes next (rules 1 to 3 above)."""
        start = self._previous_piece_start(len(self.ids))
        while start:
            previous = self._previous_piece_start(start)
            if self.end_bytes(previous - 1) < self._num_bytes_before_space:
                break
            start = previous
        while start and not self._can_cut(start):
            start = self._previous_piece_start(start)
        return start

    def count_chars_after(self, num_tokens: int) -> int:
        """How many characters of the text are not held by the first tokens."""
        return len(self.data[self.end_bytes(num_tokens - 1) :].decode())

    def _can_cut(self, num_tokens: int) -> bool:
        """Whether the text can be cut behind so many tokens: at a boundary, with no character after it that joins."""
        normalized_end = self._normalized_end(num_tokens - 1)
        if not self._alignment.is_boundary(normalized_end):
            return False
        end = self._alignment.original(normalized_end)
        following = self.data[end : end + _MAX_CHARACTER_BYTES].decode(errors="ignore")
        return not following or not joins_backwards(following[0])

    def _normalized_end(self, index: int) -> int:
        return self._normalized_ends[index] if index >= 0 else 0

    def _previous_piece_start(self, index: int) -> int:
        """The first token of the last piece that begins before the token `index`; 0 where there is none."""
        start = max(0, index - 1)
        while start and self._pieces[start - 1] == self._pieces[start]:
            start -= 1
        return start


class _Unchanged:
    """Offsets in a text that normalisation leaves as it is."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def original(self, normalized_bytes: int) -> int:
        """The last character boundary at or before an offset."""
        offset = normalized_bytes
        while offset < len(self._data) and self._data[offset] & 0xC0 == 0x80:
            offset -= 1
        return offset

    def is_boundary(self, normalized_bytes: int) -> bool:
        """Whether a character ends here."""
        return self.original(normalized_bytes) == normalized_bytes


class _Changed:
    """Offsets in a text that normalisation changes.

    A cluster is a character with those behind it that join it; clusters normalise one by one, and in those that change
    there is no boundary inside.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self._original_ends, self._normalized_ends = [0], [0]
        starts = [index for index in range(len(text)) if index == 0 or not joins_backwards(text[index])]
        for start, end in pairwise([*starts, len(text)]):
            cluster = text[start:end]
            normalized = tokenizer.normalize(cluster)
            if normalized == cluster:
                for character in cluster:
                    self._append(character, character)
            else:
                self._append(cluster, normalized)

    def original(self, normalized_bytes: int) -> int:
        """The offset before normalisation of the last boundary at or before an offset after normalisation."""
        return self._original_ends[bisect_right(self._normalized_ends, normalized_bytes) - 1]

    def is_boundary(self, normalized_bytes: int) -> bool:
        """Whether a character or a changed cluster ends here."""
        return self._normalized_ends[bisect_right(self._normalized_ends, normalized_bytes) - 1] == normalized_bytes

    def _append(self, original: str, normalized: str) -> None:
        self._original_ends.append(self._original_ends[-1] + len(original.encode()))
        self._normalized_ends.append(self._normalized_ends[-1] + len(normalized.encode()))


def joins_backwards(character: str) -> bool:
    """Whether a character may change or reorder together with those before it when a text is normalised (NFC).

    Characters that this Python's tables do not know count as such: the tokenizer's tables may be newer.
    """
    if character < _FIRST_COMBINING:
        return False
    return (
        unicodedata.combining(character) != 0
        or character in _COMPOSING_STARTERS
        or unicodedata.category(character) == "Cn"
    )
