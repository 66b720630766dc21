"""Random checkpoints of the real ones' size: speed does not depend on what the weights are.

It does depend on how long an answer of Gen is, so the random weights of that one are taught some answers.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.answering_weights import teach_answers
from tests.bench.gen_prompts import RISKY_ANSWERS, SAFE_ANSWER, chat_template
from tests.bench.progress import say
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint
from tests.model.real_vocabulary import real_tokenizer_json

_CACHE = Path(__file__).parents[2] / ".cache"
_SHAPE: dict[str, Any] = {
    "vocabulary_size": 151_936,
    "hidden": 1024,
    "layers": 28,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
}
_FORMAT = 1  # part of the cache's keys: raise it when what is written below changes


def stream_checkpoint() -> Path:
    """The shape of Qwen3Guard-Stream-0.6B, in bfloat16 as published: 1.2 GB, written once to the checkout's cache."""
    return _written_once(f"bench-stream-0.6b-{_FORMAT}", _write_stream)


def gen_checkpoint() -> Path:
    """The shape of Qwen3Guard-Gen-0.6B, likewise; greedy decoding of it gives the answers of gen_prompts."""
    return _written_once(f"bench-gen-0.6b-{_FORMAT}", _write_gen)


def _written_once(name: str, write: Callable[[Path], None]) -> Path:
    directory = _CACHE / name
    if not directory.is_dir():
        say(f"writing a random checkpoint of the 0.6B shape, {name} (once, 1.2 GB)")
        draft = _CACHE / f"{name}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        draft.rename(directory)
    return directory


def _write_stream(directory: Path) -> None:
    write_stream_checkpoint(directory, tokenizer_json=real_tokenizer_json(), guard_inner=512, **_SHAPE)


def _write_gen(directory: Path) -> None:
    write_gen_checkpoint(directory, tokenizer_json=real_tokenizer_json(), chat_template=chat_template(), **_SHAPE)
    teach_answers(directory, SAFE_ANSWER, RISKY_ANSWERS)
