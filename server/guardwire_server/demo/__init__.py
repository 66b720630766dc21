"""The two small demo checkpoints and everything that rebuilds them.

Importing this package stays cheap: torch is only imported by the training and evaluation modules.
"""

from pathlib import Path

_DEMO_DIRECTORY = Path(__file__).resolve().parent

STREAM_NAME = "guardwire-demo-stream"
GEN_NAME = "guardwire-demo-gen"
"""Folder names of the checkpoints, which are the names of the models, too."""


def stream_checkpoint_directory() -> Path:
    """Folder of the demo checkpoint with the file layout of Qwen3Guard-Stream."""
    return _DEMO_DIRECTORY / "checkpoints" / STREAM_NAME


def gen_checkpoint_directory() -> Path:
    """Folder of the demo checkpoint with the file layout of Qwen3Guard-Gen."""
    return _DEMO_DIRECTORY / "checkpoints" / GEN_NAME


def corpus_directory() -> Path:
    """Folder of the sentence patterns and word lists that the checkpoints are trained on."""
    return _DEMO_DIRECTORY / "corpus"


def handwritten_file(name: str) -> Path:
    """Path of a hand-written evaluation set; `name` is `dev` or `test`."""
    return _DEMO_DIRECTORY / f"handwritten_{name}.jsonl"
