"""A random checkpoint of the real one's size: speed does not depend on what the weights are."""

import shutil
from pathlib import Path

from tests.bench.progress import say
from tests.model.checkpoints import write_stream_checkpoint
from tests.model.real_vocabulary import real_tokenizer_json

_CACHE = Path(__file__).parents[2] / ".cache"
_FORMAT = 1  # part of the cache's key: raise it when what is written below changes


def stream_checkpoint() -> Path:
    """The shape of Qwen3Guard-Stream-0.6B, in bfloat16 as published: 1.2 GB, written once to the checkout's cache."""
    directory = _CACHE / f"bench-stream-0.6b-{_FORMAT}"
    if not directory.is_dir():
        say("writing a random checkpoint of the 0.6B shape (once, 1.2 GB)")
        draft = directory.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        write_stream_checkpoint(
            draft,
            tokenizer_json=real_tokenizer_json(),
            vocabulary_size=151_936,
            hidden=1024,
            layers=28,
            heads=16,
            kv_heads=8,
            head_dim=128,
            guard_inner=512,
        )
        draft.rename(directory)
    return directory
