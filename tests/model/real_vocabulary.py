"""Tokenizers for tests: the real vocabulary of Qwen3, and a small one that is made in milliseconds.

The real one is rebuilt from the byte-level ranks that the package `dashscope` ships, so no hub is needed. Ranks give
the tokens but not the merges: a token's last merge joins the two parts that the ranks below its own leave of it.
"""

import base64
import importlib.metadata
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from guardwire_server.model.tokens import Tokenizer
from guardwire_server.model.tokens_pipeline import BYTE_CHARACTERS, QWEN_SPLIT_PATTERN

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The added tokens that are marked special; in the order of their ids, as are the next."""

OTHER_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
ADDED_TOKENS = SPECIAL_TOKENS + OTHER_ADDED_TOKENS

NUM_RANKS = 151_643
_CACHE = Path(__file__).parents[2] / ".cache"
_FORMAT = 1  # part of the cache's key: raise it when the JSON below changes

_SMALL_CORPUS = """user assistant system

Safety: Safe Safety: Unsafe Safety: Controversial Categories: None Refusal: Yes No
The quick brown fox doesn't jump over the lazy dog; it's 12 o'clock and we'll eat 345 apples, they've said I'd see.
How do I bake bread? Mix flour, water, salt and yeast; wait for an hour, then bake it at 230 degrees.
Żółta łódź płynie. Der Fluss fließt durch die Stadt. Привет, как дела? 你好,世界。こんにちは。 안녕하세요. नमस्ते दुनिया
"""


def write_real_tokenizer(directory: Path) -> Path:
    """Writes the real tokenizer.json into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "tokenizer.json"
    file.write_bytes(real_tokenizer_json())
    return file


@cache
def real_tokenizer_json() -> bytes:
    """The tokenizer.json of Qwen3: built once per version of dashscope, then read from the checkout's cache."""
    version = importlib.metadata.version("dashscope")
    file = _CACHE / f"qwen-vocabulary-{version}-{_FORMAT}" / "tokenizer.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        ranks = read_ranks()
        tokens = {_spell(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
        content = _tokenizer_json(tokens, [(_spell(left), _spell(right)) for left, right in derive_merges(ranks)])
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as draft:
            draft.write(content)
        Path(draft.name).replace(file)  # at once: another test process may be reading
    return file.read_bytes()


@cache
def small_tokenizer_json() -> bytes:
    """A byte-level tokenizer.json of about 400 tokens with Qwen3's pipeline and added tokens."""
    draft = tokenizers.Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(BYTE_CHARACTERS.values())
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    draft.train_from_iterator([_SMALL_CORPUS], trainer)
    model = json.loads(draft.to_str())["model"]
    return _tokenizer_json(model["vocab"], model["merges"])


@cache
def real_tokenizer() -> Tokenizer:
    """The real vocabulary; immutable, so tests share it."""
    return Tokenizer(real_tokenizer_json())


@cache
def small_tokenizer() -> Tokenizer:
    """The small vocabulary; immutable, so tests share it."""
    return Tokenizer(small_tokenizer_json())


def read_ranks() -> dict[bytes, int]:
    """The tokens of Qwen's vocabulary as bytes with their ranks, which are their ids."""
    package = importlib.util.find_spec("dashscope")  # found, not imported: the package starts clients of its own
    assert package is not None
    assert package.origin is not None
    lines = (Path(package.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    assert sorted(ranks.values()) == list(range(NUM_RANKS))
    return ranks


def derive_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that build each token of more than one byte from two others, in the order of the tokens' ranks."""
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            left, right = merge_by_rank(token, ranks, below=ranks[token])
            merges.append((left, right))
    return merges


def merge_by_rank(text: bytes, ranks: dict[bytes, int], *, below: int) -> list[bytes]:
    """Byte-pair encoding by its definition: joins the neighbours of the lowest rank until none is below the limit."""
    parts = [text[index : index + 1] for index in range(len(text))]
    while len(parts) > 1:
        pair_ranks = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        lowest = min(pair_ranks)
        if lowest >= below:
            break
        at = pair_ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _spell(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def _tokenizer_json(tokens: dict[str, int], merges: Sequence[Sequence[str]]) -> bytes:
    """A tokenizer.json in the official layout, the added tokens behind the given ones."""
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(len(tokens) + rank, content) for rank, content in enumerate(ADDED_TOKENS)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": QWEN_SPLIT_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(),
            ],
        },
        "post_processor": _byte_level(),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": tokens,
            "merges": [" ".join(merge) for merge in merges],
        },
    }
    return json.dumps(values, ensure_ascii=False).encode()


def _added_token(token_id: int, content: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": content in SPECIAL_TOKENS}


def _byte_level() -> dict[str, object]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
