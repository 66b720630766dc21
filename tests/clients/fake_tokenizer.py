"""The tokenizer of the fake server: a word each, and one control token."""

import hashlib
import json

from tests.clients.fake_stream import VOCABULARY


def tokenizer_json() -> bytes:
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(VOCABULARY),
                "content": "<|im_end|>",
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    }
    return json.dumps(document, ensure_ascii=False).encode()


def tokenizer_fingerprint() -> str:
    lines = [f"{token_id}\t{token}\n" for token, token_id in VOCABULARY.items()]
    lines.append(f"{len(VOCABULARY)}\t<|im_end|>\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
