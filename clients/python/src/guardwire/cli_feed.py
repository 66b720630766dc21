"""How `guardwire moderate` pushes an answer, and which piece of it a verdict is about."""

from __future__ import annotations

import codecs
from typing import Protocol

from guardwire.enums import InputKind
from guardwire.results import Decision, TokenVerdict
from guardwire.stream import ModerateStream
from guardwire.tokenizer import fingerprint

_TOKENS_PER_PUSH = 4
_CHARACTERS_PER_PUSH = 16


class Feed(Protocol):
    """An answer that is pushed in small pieces."""

    kind: InputKind
    tokenizer_fingerprint: str

    def push(self, stream: ModerateStream) -> None:
        """Pushes the whole answer."""
        ...

    def next_piece(self, verdict: TokenVerdict) -> str:
        """The text that the next verdict is about; empty for a token that ends within a character."""
        ...

    def kept(self, decision: Decision) -> str:
        """The text before the place where a decision on the answer cuts."""
        ...


class TokenFeed:
    """Pushes token ids, tokenised here.

    Raises:
        ImportError: The tokenizers package is not installed.
    """

    kind = InputKind.TOKENS

    def __init__(self, answer: str, tokenizer_json: bytes) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_buffer(tokenizer_json)
        tokenizer.encode_special_tokens = True  # control tokens in the answer are the text that they are
        encoding = tokenizer.encode(answer, add_special_tokens=False)
        self.tokenizer_fingerprint = fingerprint(tokenizer_json)
        self._answer = answer
        self._ids: list[int] = encoding.ids
        self._ends: list[int] = [end for _, end in encoding.offsets]
        self._shown = 0

    def push(self, stream: ModerateStream) -> None:
        """Pushes the ids in small chunks."""
        for start in range(0, len(self._ids), _TOKENS_PER_PUSH):
            stream.push(self._ids[start : start + _TOKENS_PER_PUSH])

    def next_piece(self, verdict: TokenVerdict) -> str:
        """By the offsets of the tokens; white space goes with the token behind it."""
        start, self._shown = self._shown, max(self._shown, self._ends[verdict.index])
        return self._answer[start : self._shown]

    def kept(self, decision: Decision) -> str:
        """Up to the end of the last token before the cut."""
        if decision.cut_index == 0:
            return ""
        return self._answer[: self._ends[decision.cut_index - 1]]


class TextFeed:
    """Pushes text; the server tokenises it."""

    kind = InputKind.TEXT
    tokenizer_fingerprint = ""

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self._encoded = answer.encode("utf-8", "surrogatepass")  # what cannot be sent is refused when it is pushed
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown = 0

    def push(self, stream: ModerateStream) -> None:
        """Pushes the text in small pieces."""
        for start in range(0, len(self._answer), _CHARACTERS_PER_PUSH):
            stream.push_text(self._answer[start : start + _CHARACTERS_PER_PUSH])

    def next_piece(self, verdict: TokenVerdict) -> str:
        """By the offsets that the server tells."""
        start, self._shown = self._shown, max(self._shown, verdict.text_end_offset or 0)
        return self._decoder.decode(self._encoded[start : self._shown])

    def kept(self, decision: Decision) -> str:
        """Up to the offset that the server tells."""
        return self._encoded[: decision.cut_text_offset or 0].decode("utf-8", "ignore")
