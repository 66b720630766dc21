"""The fingerprint by which a server and its callers know that they mean the same token ids."""

from __future__ import annotations

import hashlib
import json

from guardwire.errors import broken_contract
from guardwire.v1 import moderation_pb2 as pb


def fingerprint(tokenizer_json: bytes) -> str:
    """Computes the fingerprint of a tokenizer from its tokenizer.json.

    SHA-256, in lower-case hexadecimal, over the vocabulary: for every token id in rising order, the decimal id, a tab,
    the token as the file spells it, and a newline, in UTF-8. Added tokens count.

    Raises:
        ValueError: It is not a tokenizer.json with a vocabulary that maps tokens to ids.
    """
    document = json.loads(tokenizer_json)
    try:
        tokens = {int(token_id): str(token) for token, token_id in document["model"]["vocab"].items()}
        tokens |= {int(added["id"]): str(added["content"]) for added in document.get("added_tokens") or ()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a tokenizer.json with a vocabulary that maps tokens to ids") from error
    digest = hashlib.sha256()
    for token_id in sorted(tokens):
        digest.update(f"{token_id}\t{tokens[token_id]}\n".encode())
    return digest.hexdigest()


class TokenizerDownload:
    """Puts the pieces of a tokenizer.json together and checks the whole.

    Owner: the one call that feeds it.
    """

    def __init__(self) -> None:
        self._content = bytearray()
        self._num_bytes: int | None = None
        self._fingerprint = ""

    def add(self, piece: pb.GetTokenizerResponse) -> None:
        """Takes the next piece.

        Raises:
            ServerFault: There are more bytes than the first piece announced.
        """
        if self._num_bytes is None:
            self._num_bytes, self._fingerprint = piece.num_bytes, piece.tokenizer_fingerprint
        self._content += piece.chunk
        if len(self._content) > self._num_bytes:
            raise broken_contract(
                f"the server sent more of the tokenizer than the {self._num_bytes} bytes it announced"
            )

    def content(self) -> bytes:
        """The whole file.

        Raises:
            ServerFault: Bytes are missing, or the vocabulary is not the one that the server's fingerprint names.
        """
        content = bytes(self._content)
        if len(content) != self._num_bytes:
            raise broken_contract(f"the server sent {len(content)} of {self._num_bytes} bytes of the tokenizer")
        try:
            found = fingerprint(content)
        except ValueError as error:
            raise broken_contract(f"the server's tokenizer cannot be read: {error}") from error
        if found != self._fingerprint:
            raise broken_contract(f"the tokenizer has fingerprint {found}, the server says {self._fingerprint}")
        return content
