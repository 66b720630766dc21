"""What a `tokenizer.json` must be like for us, and its twin that knows no control tokens.

A text's ids are right only if four steps are the ones that we reason about: NFC, Qwen's split pattern, bytes spelt as
characters, BPE. text_stream.py relies on the second (which piece of a text can still change), tokens.py on the third
(how many bytes a token stands for). So another pipeline is refused at the start.
"""

import json
from dataclasses import dataclass
from typing import Any

from guardwire_server.core.errors import StartupError

QWEN_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and Qwen3 cut a text into the pieces that BPE works on.

Source: `tokenizer.json` of the Qwen3 checkpoints, key pre_tokenizer.
"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a `tokenizer.json` says.

    Attributes:
        tokens: Every token as the file spells it, with its id, added tokens included.
        added_tokens: The tokens that are recognised in a rendered template, with their ids.
        plain_json: The same tokenizer without added tokens, as JSON: it can never give one of their ids.
    """

    tokens: dict[str, int]
    added_tokens: dict[str, int]
    plain_json: str


def _byte_characters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves, the other bytes for the characters from U+0100 on, in order.
    Source: GPT-2's encoder, which all byte-level BPE vocabularies follow.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def parse_vocabulary(json_bytes: bytes, origin: str) -> Vocabulary:
    """Reads and checks a `tokenizer.json`.

    Args:
        json_bytes: The file's content.
        origin: What to call it in messages: its path.

    Raises:
        StartupError: It is not JSON, or not the pipeline described above; the message names the key.
    """
    try:
        values = json.loads(json_bytes)
    except ValueError as error:
        raise StartupError(f"{origin}: is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise StartupError(f"{origin}: must hold a JSON object, found {type(values).__name__}")
    _check_steps(values, origin)
    vocabulary = _model_vocabulary(values, origin)
    added_tokens = _added_tokens(values, origin)
    plain_vocabulary = {token: token_id for token, token_id in vocabulary.items() if token not in added_tokens}
    _check_spellings(plain_vocabulary, origin)
    _check_merges(values["model"].get("merges"), added_tokens, origin)
    values["added_tokens"] = []
    values["post_processor"] = values["truncation"] = values["padding"] = None
    values["model"]["vocab"] = plain_vocabulary
    return Vocabulary(vocabulary | added_tokens, added_tokens, json.dumps(values, ensure_ascii=False))


def _check_steps(values: dict[str, Any], origin: str) -> None:
    normalizer = values.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise StartupError(f"{origin}: normalizer must be NFC or null, found {_shown(normalizer)}")
    pre_tokenizer = values.get("pre_tokenizer")
    steps = pre_tokenizer.get("pretokenizers") if isinstance(pre_tokenizer, dict) else None
    if not isinstance(steps, list) or len(steps) != 2 or not all(isinstance(step, dict) for step in steps):
        raise StartupError(f"{origin}: pre_tokenizer must be Split, then ByteLevel; found {_shown(pre_tokenizer)}")
    split, byte_level = steps
    if (
        split.get("type") != "Split"
        or split.get("pattern") != {"Regex": QWEN_SPLIT_PATTERN}
        or split.get("behavior") != "Isolated"
        or split.get("invert")
    ):
        raise StartupError(f"{origin}: pre_tokenizer[0] must be Qwen's Split, isolated; found {_shown(split)}")
    if byte_level.get("type") != "ByteLevel" or byte_level.get("use_regex", True) or byte_level.get("add_prefix_space"):
        raise StartupError(
            f"{origin}: pre_tokenizer[1] must be ByteLevel without regex and prefix space; found {_shown(byte_level)}"
        )
    model = values.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("dropout"):
        raise StartupError(f"{origin}: model must be BPE without dropout")


def _model_vocabulary(values: dict[str, Any], origin: str) -> dict[str, int]:
    vocabulary = values["model"].get("vocab")
    if not isinstance(vocabulary, dict) or not all(isinstance(token_id, int) for token_id in vocabulary.values()):
        raise StartupError(f"{origin}: model.vocab must be an object of tokens and ids")
    missing = [byte for byte, character in BYTE_CHARACTERS.items() if character not in vocabulary]
    if missing:
        raise StartupError(f"{origin}: model.vocab has no token for {len(missing)} of the 256 bytes: {missing[0]}, …")
    return vocabulary


def _check_spellings(vocabulary: dict[str, int], origin: str) -> None:
    unknown = set().union(*vocabulary) - CHARACTER_BYTES.keys()
    for token in vocabulary if unknown else ():
        if not unknown.isdisjoint(token):
            raise StartupError(f"{origin}: model.vocab has {_shown(token)}, which does not spell bytes")


def _added_tokens(values: dict[str, Any], origin: str) -> dict[str, int]:
    added_tokens: dict[str, int] = {}
    for index, token in enumerate(values.get("added_tokens") or []):
        key = f"{origin}: added_tokens[{index}]"
        if not isinstance(token, dict) or not isinstance(token.get("id"), int) or not token.get("content"):
            raise StartupError(f"{key} must have an id and a content")
        for attribute in ("lstrip", "rstrip", "single_word"):
            if token.get(attribute):
                raise StartupError(f"{key}: {attribute} is not served")
        added_tokens[token["content"]] = token["id"]
    return added_tokens


def _check_merges(merges: object, added_tokens: dict[str, int], origin: str) -> None:
    """Refuses merges that spell out a control token, which plain text could then become."""
    for merge in merges if isinstance(merges, list) else []:
        merged = merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
        if merged in added_tokens:
            raise StartupError(f"{origin}: model.merges makes the control token {merged} from plain text")


def _shown(value: object) -> str:
    return json.dumps(value)[:200]
