"""Turns what an operator wrote, a directory or a hub name, into a directory with a checkpoint's files."""

import re
from pathlib import Path

import huggingface_hub

from guardwire_server.core.errors import StartupError

_SERVED_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What the server reads. The remote code (`*.py`) of a Stream checkpoint is not even downloaded."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<repository>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_checkpoint(name_or_path: str) -> Path:
    """Finds a checkpoint's directory, downloading it first where the name is one of the hub's.

    The hub library shows the download's progress, and serves from its cache where the network is absent.

    Args:
        name_or_path: An existing directory, or a hub name of the form `owner/repository`.

    Raises:
        StartupError: It is neither, or the download failed; the message says what to do.
    """
    if directory := local_checkpoint(name_or_path):
        return directory
    try:
        return Path(huggingface_hub.snapshot_download(name_or_path, allow_patterns=list(_SERVED_FILES))).resolve()
    except Exception as error:  # the hub library's own errors, its HTTP library's, and the file system's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise StartupError(
            f"{name_or_path}: there is no such directory, and the hub could not provide it ({reason[0]}). "
            "Check the name and the network, set HF_TOKEN where access is restricted, or download the checkpoint "
            "elsewhere and name its directory"
        ) from error


def local_checkpoint(name_or_path: str) -> Path | None:
    """The directory that it names; None if it can only be a hub name. Asks nobody, and imports nothing heavy.

    Raises:
        StartupError: It is neither.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        return path.resolve()
    if path.is_file():
        raise StartupError(f"{name_or_path}: is a file; name the checkpoint's directory instead")
    if not _HUB_NAME.fullmatch(name_or_path):
        raise StartupError(
            f"{name_or_path}: there is no such directory, and it is no hub name such as Qwen/Qwen3Guard-Stream-0.6B"
        )
    return None


def hub_commit(path: Path) -> str | None:
    """The commit that a directory of the hub's cache holds (`…/snapshots/<commit>`), else None."""
    return path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else None


def checkpoint_name(name_or_path: str, path: Path) -> str:
    """What to call a checkpoint: its hub name where that is known, else the name of its directory."""
    if hub_commit(path) is not None:
        snapshot = _HUB_SNAPSHOT.fullmatch(path.parent.parent.name)
        if snapshot:
            return f"{snapshot['owner']}/{snapshot['repository']}"
    return path.name or name_or_path
