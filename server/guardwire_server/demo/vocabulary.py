"""Trains the demo tokenizer: byte-level BPE in the layout of Qwen3's, with a small vocabulary of our own."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from guardwire_server.model.tokens_pipeline import QWEN_SPLIT_PATTERN

CONTROL_TOKENS = (
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
"""Source: the added tokens of Qwen3's tokenizer.json, in their order."""

_VOCABULARY_SIZE = 8192
_REQUIRED_WORDS = (
    "user",
    "assistant",
    "system",
    "\n\n",
    "\n",
    " Safe",
    " Unsafe",
    " Controversial",
    " None",
    " Yes",
    " No",
)
_REQUIRED_REPEATS = 20_000
_FIXED_TEXT_REPEATS = 2_000


def train_tokenizer(texts: Iterable[str], fixed_texts: Iterable[str]) -> Tokenizer:
    """Learns the merges and appends the control tokens at the end of the vocabulary.

    Args:
        texts: What people and assistants write.
        fixed_texts: Wording that every request repeats (the policy); its words become single tokens to keep it short.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE - len(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_with_required_words(texts, fixed_texts), trainer=trainer)
    # Qwen3 marks the bracketed tokens as special and leaves the tool and thinking tags as plain added tokens.
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=token.startswith("<|")) for token in CONTROL_TOKENS]
    )
    return tokenizer


def _with_required_words(texts: Iterable[str], fixed_texts: Iterable[str]) -> Iterable[str]:
    """The texts, and the words that the formats rely on often enough to become single tokens."""
    yield from texts
    for text in fixed_texts:
        yield from (text for _ in range(_FIXED_TEXT_REPEATS))
    for word in _REQUIRED_WORDS:
        for _ in range(_REQUIRED_REPEATS):
            yield word


def write_tokenizer(tokenizer: Tokenizer, directory: Path, chat_template: str | None) -> None:
    """Writes tokenizer.json and tokenizer_config.json; the template goes into the latter, as upstream has it."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config: dict[str, object] = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.startswith("<|"),
            }
            for token in CONTROL_TOKENS
        },
        "additional_special_tokens": [
            token
            for token in CONTROL_TOKENS[1:]
            if token.startswith("<|") and not token.startswith(("<|fim", "<|repo", "<|file"))
        ],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (directory / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
