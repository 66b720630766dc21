"""Finds tensors in a checkpoint's safetensors files, and says which file and key is at fault when it cannot."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint_config import read_json_object

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


class _StoredTensor(Protocol):
    """What safetensors tells of a tensor before reading it."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


class _OpenFile(Protocol):
    """An open safetensors file."""

    def keys(self) -> list[str]: ...

    def get_slice(self, key: str) -> _StoredTensor: ...

    def get_tensor(self, key: str) -> torch.Tensor: ...


class WeightFiles:
    """Where each tensor of a checkpoint lies: in `model.safetensors`, or in shards named by an index.

    Immutable. Files are opened for the length of a call, so nothing is held afterwards.
    """

    def __init__(self, path: Path) -> None:
        """Reads the index, or the single file's header.

        Args:
            path: The checkpoint's directory.

        Raises:
            StartupError: There are no weights, or the index names a file that is not there.
        """
        self._path = path
        single, index = path / _SINGLE_FILE, path / _INDEX_FILE
        if single.is_file():
            self._origin = single
            with _open(single) as file:
                self._file_of = dict.fromkeys(file.keys(), single)
        elif index.is_file():
            self._origin = index
            self._file_of = _read_index(index)
        else:
            raise StartupError(
                f"{path}: there is neither {_SINGLE_FILE} nor {_INDEX_FILE}; other weight formats are not served"
            )

    def keys(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(self._file_of)

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header.

        Raises:
            StartupError: There is no such tensor, or the file is damaged.
        """
        path = self._file(key)
        with _open(path) as file:
            return tuple(_slice(file, path, key).get_shape())

    def read(
        self, shapes: dict[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Reads tensors one by one, file by file, each as a copy of its own (never a view of the mapped file).

        Args:
            shapes: The tensors to read and the shapes they must have.
            device: Where to put them.
            dtype: What to convert them to.

        Yields:
            The name and the tensor.

        Raises:
            StartupError: A tensor is missing, damaged or of another shape. Nothing is read unless all are there.
        """
        by_file: dict[Path, list[str]] = {}
        for key in shapes:
            by_file.setdefault(self._file(key), []).append(key)
        for path, keys in by_file.items():
            with _open(path) as file:
                for key in keys:
                    _check(_slice(file, path, key), shapes[key], f"{path}: {key}")
        for path, keys in by_file.items():
            with _open(path) as file:
                for key in keys:
                    yield key, _place(file.get_tensor(key), device, dtype, f"{path}: {key}")

    def _file(self, key: str) -> Path:
        if key not in self._file_of:
            raise StartupError(f"{self._origin}: there is no tensor {key}")
        return self._file_of[key]


def _read_index(index: Path) -> dict[str, Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise StartupError(f"{index}: weight_map must be an object of tensor and file names")
    names: Iterable[str] = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise StartupError(f"{index}: weight_map names {name!r}, which is not a file of this directory")
        if not (index.parent / name).is_file():
            raise StartupError(f"{index.parent / name}: there is no such file, but {index.name} names it")
    return {key: index.parent / name for key, name in weight_map.items()}


@contextmanager
def _open(path: Path) -> Iterator[_OpenFile]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise StartupError(f"{path}: is damaged or incomplete: {error}; download it again") from error


def _slice(file: _OpenFile, path: Path, key: str) -> _StoredTensor:
    try:
        return file.get_slice(key)
    except SafetensorError:
        raise StartupError(f"{path}: there is no tensor {key} in it, but {_INDEX_FILE} says so") from None


def _place(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype, where: str) -> torch.Tensor:
    try:
        return tensor.to(device=device, dtype=dtype, copy=True)
    except RuntimeError as error:  # out of memory, mostly
        reason = str(error).partition("\n")[0]
        raise StartupError(f"{where} cannot be placed on {device} as {dtype}: {reason}") from error


def _check(tensor: _StoredTensor, expected: tuple[int, ...], where: str) -> None:
    found = tuple(tensor.get_shape())
    if found != expected:
        raise StartupError(f"{where} must have the shape {list(expected)}, found {list(found)}")
    if tensor.get_dtype() not in _WEIGHT_DTYPES:
        raise StartupError(f"{where} is stored as {tensor.get_dtype()}; served are {', '.join(_WEIGHT_DTYPES)}")
