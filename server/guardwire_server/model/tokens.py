"""The tokenizer of a checkpoint, seen from a server that must not let a user's text become a control token."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import tokenizers

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint import Checkpoint
from guardwire_server.model.tokens_pipeline import CHARACTER_BYTES, parse_vocabulary


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The ids of the tokens that the chat template is built from."""

    im_start: int
    im_end: int
    think: int
    think_end: int


_CONTROL_SPELLINGS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


class Tokenizer:
    """A vocabulary with two ways to encode: `encode_plain` for what people wrote, `encode_template` for what we wrote.

    Two tokenizers stand behind it. Switching special tokens off in one is not enough: `<think>` and `<tool_call>` are
    added tokens that are not marked special, and would still be recognised. So the plain one is built from the same
    JSON without added tokens, and cannot give their ids whatever the text.

    Immutable; calls may come from any thread.

    Attributes:
        json_bytes: The `tokenizer.json` that it was made from.
        fingerprint: SHA-256 in hexadecimal over the vocabulary: for every id in rising order the decimal id, a tab, the
            token as `tokenizer.json` spells it, and a newline, in UTF-8.
        control: The ids of the template's control tokens.
        added_tokens: All tokens that `encode_template` recognises, with their ids.
        num_tokens: One more than the highest id.
    """

    def __init__(self, json_bytes: bytes, origin: str = "tokenizer.json") -> None:
        """Builds both tokenizers.

        Args:
            json_bytes: The content of a `tokenizer.json`.
            origin: What to call it in messages: its path.

        Raises:
            StartupError: It is malformed, lacks a control token, or works in another way than Qwen's (see
                tokens_pipeline.py).
        """
        vocabulary = parse_vocabulary(json_bytes, origin)
        try:
            self._template = tokenizers.Tokenizer.from_buffer(json_bytes)
            self._plain = tokenizers.Tokenizer.from_str(vocabulary.plain_json)
        except Exception as error:  # the library raises plain Exception
            raise StartupError(f"{origin}: cannot be loaded: {error}") from error
        self._template.no_truncation()
        self._template.no_padding()
        self.json_bytes = json_bytes
        self.added_tokens = vocabulary.added_tokens
        self.control = _control_tokens(vocabulary.added_tokens, origin)
        # Added tokens come last in `tokens`, so where one has the id of another token its spelling counts.
        tokens = sorted({token_id: token for token, token_id in vocabulary.tokens.items()}.items())
        self.num_tokens = tokens[-1][0] + 1
        self.fingerprint = _fingerprint(tokens)
        self._spellings: dict[int, str] = dict(tokens)
        self._byte_lengths = self._plain_byte_lengths()
        self._normalizer = self._plain.normalizer

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a checkpoint's `tokenizer.json`; files with the same content, as a Stream and a Gen have, share one.

        Args:
            path: The checkpoint's directory, or the file itself.

        Raises:
            StartupError: As the constructor, or the file cannot be read.
        """
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StartupError(f"{file}: cannot be read: {error.strerror or error}") from error
        digest = hashlib.sha256(content).digest()
        tokenizer = _in_use.get(digest)
        if tokenizer is None:
            tokenizer = _in_use[digest] = cls(content, str(file))
        return tokenizer

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which control tokens are ordinary characters.

        Equal to the reference's ids for every text that spells no control token.
        """
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_plain_pieces(self, text: str) -> tuple[list[int], list[int]]:
        """As `encode_plain`, and for each token the number of its piece, the split pattern's match."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.ids, [piece or 0 for piece in encoding.word_ids]

    def encode_template(self, rendered: str) -> list[int]:
        """The ids of a text in which control tokens are recognised: for text that holds no words but ours."""
        ids: list[int] = self._template.encode(rendered, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, control tokens spelt out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    def decode_answer(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens as transformers' `decode(..., skip_special_tokens=True)` gives it."""
        text: str = self._template.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, possibly part of a character; empty for an id without a token."""
        spelling = self._spellings.get(token_id, "")
        if spelling in self.added_tokens:
            return spelling.encode()
        return bytes(CHARACTER_BYTES[character] for character in spelling)

    def plain_byte_lengths(self, token_ids: Iterable[int]) -> list[int]:
        """The number of bytes of normalised text that each token of `encode_plain` stands for."""
        return [self._byte_lengths[token_id] for token_id in token_ids]

    def normalize(self, text: str) -> str:
        """The text as the vocabulary sees it (NFC); encoding it gives the same ids."""
        return text if self._normalizer is None or text.isascii() else self._normalizer.normalize_str(text)

    def _plain_byte_lengths(self) -> "array[int]":
        lengths = array("I", [0]) * self.num_tokens
        for token_id, spelling in self._spellings.items():
            lengths[token_id] = len(spelling)
        return lengths


_in_use: WeakValueDictionary[bytes, Tokenizer] = WeakValueDictionary()
"""By the SHA-256 of their files. Reading the published vocabulary takes a processor one to two seconds, and 85 MB."""


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Loads a checkpoint's tokenizer.

    Raises:
        StartupError: As `Tokenizer`, or it gives ids for which the model has no embedding.
    """
    tokenizer = Tokenizer.load(checkpoint.path)
    if tokenizer.num_tokens > checkpoint.vocabulary_size:
        raise StartupError(
            f"{checkpoint.path / 'tokenizer.json'}: gives ids up to {tokenizer.num_tokens - 1}, but vocab_size in "
            f"config.json is {checkpoint.vocabulary_size}; the files belong to different models"
        )
    return tokenizer


def _control_tokens(added_tokens: dict[str, int], origin: str) -> ControlTokens:
    missing = [spelling for spelling in _CONTROL_SPELLINGS if spelling not in added_tokens]
    if missing:
        raise StartupError(f"{origin}: added_tokens has no {' and no '.join(missing)}")
    return ControlTokens(*(added_tokens[spelling] for spelling in _CONTROL_SPELLINGS))


def _fingerprint(tokens: list[tuple[int, str]]) -> str:
    digest = hashlib.sha256()
    for token_id, token in tokens:
        digest.update(f"{token_id}\t{token}\n".encode())
    return digest.hexdigest()
