"""What the tests of the model layer share: one thread, and a checkpoint of each family."""

from pathlib import Path

import pytest
import torch

from guardwire_server.model.tokens import Tokenizer
from tests.model import real_vocabulary
from tests.model.checkpoints import write_gen_checkpoint, write_stream_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_tokenizer() -> Tokenizer:
    """Qwen3's vocabulary."""
    return real_vocabulary.real_tokenizer()


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    """A vocabulary of about 400 tokens with the same pipeline."""
    return real_vocabulary.small_tokenizer()


@pytest.fixture(scope="session")
def stream_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stream checkpoint; not to be changed."""
    return write_stream_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-stream")


@pytest.fixture(scope="session")
def gen_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gen checkpoint; not to be changed."""
    return write_gen_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-gen")
