"""Opens a checkpoint: says what it is without loading its weights.

Served are the two families of Qwen3Guard. `Qwen3ForCausalLM` is Gen, which writes its verdict as text;
`Qwen3ForGuardModel` is Stream, which labels each token. The latter's upstream class is remote code: it is neither
downloaded nor run, stream_guard.py implements it.

Importing this brings no torch: a wrong checkpoint is told before the seconds that it takes are spent.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint_config import (
    StreamLabels,
    parse_backbone_config,
    parse_backbone_numbers,
    parse_eos_token_ids,
    parse_guard_inner_size,
    parse_stream_labels,
    read_json_object,
)
from guardwire_server.model.checkpoint_hub import checkpoint_name, find_checkpoint, hub_commit

if TYPE_CHECKING:
    from transformers import Qwen3Config

_CONFIG_NAME = "config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_NUM_SAMPLES = 16
_SAMPLE_BYTES = 65536


class CheckpointKind(Enum):
    """The two families; the value is the architecture's name in `config.json`."""

    STREAM = "Qwen3ForGuardModel"
    GEN = "Qwen3ForCausalLM"

    @property
    def family(self) -> str:
        """What its checkpoints are called."""
        return f"Qwen3Guard-{self.name.title()}"

    @property
    def setting(self) -> str:
        """The setting that names a checkpoint of this family."""
        return f"{self.name.lower()}_model"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint is. Immutable, and light: the weights stay on disk.

    Attributes:
        path: The directory with its files.
        name: Its hub name, or the name of the directory.
        kind: The family.
        revision: The hub's commit where the directory belongs to the hub's cache, else a digest of the files
            (`files_digest`).
        config: The backbone's numbers.
        eos_token_ids: The ids at which generation ends, `generation_config.json` first; empty where none is told.
        labels: What the heads' rows mean; None for Gen.
        guard_inner_size: The width of the heads; None for Gen, and where only the weights tell.
        is_demo: Whether it is for trying things out (`"guardwire_demo": true` in `config.json`).
    """

    path: Path
    name: str
    kind: CheckpointKind
    revision: str
    config: "Qwen3Config"
    eos_token_ids: tuple[int, ...] = ()
    labels: StreamLabels | None = field(default=None, repr=False)
    guard_inner_size: int | None = None
    is_demo: bool = False

    @property
    def max_context_tokens(self) -> int:
        """The longest sequence in tokens that the model was made for."""
        return int(self.config.max_position_embeddings)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding: every token id must be below. The tokenizer may know fewer."""
        return int(self.config.vocab_size)


def open_checkpoint(name_or_path: str | Path) -> Checkpoint:
    """Opens a checkpoint by directory or hub name; a hub checkpoint is downloaded on first use.

    Raises:
        StartupError: There is no such checkpoint, a file is missing or malformed, or it is of a kind that is not
            served; the message names the file and the key.
    """
    path = find_checkpoint(str(name_or_path))
    values, kind = _read_config(path)
    config_path = path / _CONFIG_NAME
    is_stream = kind is CheckpointKind.STREAM
    return Checkpoint(
        path=path,
        name=checkpoint_name(str(name_or_path), path),
        kind=kind,
        revision=hub_commit(path) or f"sha256:{files_digest(path)[:12]}",
        config=parse_backbone_config(values, config_path),
        eos_token_ids=_eos_token_ids(path, values),
        labels=parse_stream_labels(values, config_path) if is_stream else None,
        guard_inner_size=parse_guard_inner_size(values, config_path) if is_stream else None,
        is_demo=values.get("guardwire_demo") is True,
    )


def check_directory(path: Path, needed: CheckpointKind) -> None:
    """Finds out whether a directory holds a checkpoint of a family; imports no torch, and reads no weights.

    Raises:
        StartupError: As `open_checkpoint`, or it is of the other family.
    """
    values, kind = _read_config(path)
    check_kind(kind, needed, checkpoint_name(str(path), path))
    config_path = path / _CONFIG_NAME
    parse_backbone_numbers(values, config_path)
    _eos_token_ids(path, values)
    if kind is CheckpointKind.STREAM:
        parse_stream_labels(values, config_path)
        parse_guard_inner_size(values, config_path)
    if not any((path / name).is_file() for name in _WEIGHTS):
        raise StartupError(f"{path}: there is neither {' nor '.join(_WEIGHTS)}; other weight formats are not served")


def check_kind(kind: CheckpointKind, needed: CheckpointKind, name: str) -> None:
    """Refuses a checkpoint of the other family.

    Raises:
        StartupError: If it is; the message says where it belongs.
    """
    if kind is not needed:
        raise StartupError(f"{name} is a {kind.family} checkpoint: give it as {kind.setting}")


def files_digest(path: Path) -> str:
    """SHA-256 in hexadecimal over what makes a checkpoint in a plain directory the one that it is.

    Whole: `config.json`, `tokenizer.json`, the safetensors index and the chat template. Of each weight file the name,
    the size and 16 evenly spaced pieces of 64 KiB, the first of which holds its header: reading 16 GB whole would
    take longer than loading them, and other weights of the same shapes differ everywhere.

    Raises:
        StartupError: A file cannot be read.
    """
    digest = hashlib.sha256()
    whole = ("config.json", "tokenizer.json", "model.safetensors.index.json", "tokenizer_config.json")
    templates = ("chat_template.jinja", "chat_template.json")
    try:
        for name in (*whole, *templates):
            if (path / name).is_file():
                content = (path / name).read_bytes()
                digest.update(f"{name}\n{len(content)}\n".encode())
                digest.update(content)
        for weights in sorted(path.glob("*.safetensors")):
            size = weights.stat().st_size
            digest.update(f"{weights.name}\n{size}\n".encode())
            for sample in _samples(weights, size):
                digest.update(sample)
    except OSError as error:
        raise StartupError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _samples(path: Path, size_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        for index in range(_NUM_SAMPLES):
            file.seek(max(0, size_bytes - _SAMPLE_BYTES) * index // (_NUM_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _read_config(path: Path) -> tuple[dict[str, Any], CheckpointKind]:
    """The values of `config.json`, and the family that they name."""
    values = read_json_object(path / _CONFIG_NAME)
    kind = _kind(values, path / _CONFIG_NAME)
    if not (path / "tokenizer.json").is_file():
        raise StartupError(f"{path / 'tokenizer.json'}: there is no such file; a checkpoint needs it")
    return values, kind


def _kind(values: dict[str, Any], path: Path) -> CheckpointKind:
    architectures = values.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    for kind in CheckpointKind:
        if names == [kind.value]:
            return kind
    served = ", ".join(f'["{kind.value}"] ({kind.family})' for kind in CheckpointKind)
    raise StartupError(f"{path}: architectures is {architectures!r}; served are {served}")


def _eos_token_ids(path: Path, values: dict[str, Any]) -> tuple[int, ...]:
    generation_path = path / "generation_config.json"
    generation_values = read_json_object(generation_path) if generation_path.is_file() else {}
    return parse_eos_token_ids(generation_values) or parse_eos_token_ids(values)
