"""Compiles the kernels of kernels/ on this machine, for its processor, and keeps the library for the next start.

A wheel with binaries would have to bring one for every processor; a compiler and some seconds give the best one for
this.
"""

import contextlib
import ctypes
import hashlib
import logging
import shutil
import subprocess
import tempfile
from pathlib import Path

from guardwire_server.model.checkpoint_device import processor_flags

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels") / "kernels.cpp"
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC")

_COMPILERS = ("c++", "g++", "clang++")
_COMPILE_TIMEOUT_S = 120


def load_library(directory: Path | None = None) -> ctypes.CDLL | None:
    """The library, compiled if this machine has not done so before; None where it cannot be.

    Args:
        directory: Where it is kept; default: `.cache/guardwire` in the home directory, or nowhere where that cannot be
            written.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        logger.info("no C++ compiler: computing with torch alone, which is slower")
        return None
    try:
        return _library(compiler, directory or _default_directory())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("the native kernels cannot be used, computing with torch alone: %s", error)
        return None


def _default_directory() -> Path | None:
    try:
        return Path.home() / ".cache" / "guardwire"
    except RuntimeError:  # a user without a home, as containers have them
        return None


def _library(compiler: str, directory: Path | None) -> ctypes.CDLL:
    """The library from the cache, or compiled into it; without a directory, compiled for this process alone."""
    path = directory / f"kernels-{_fingerprint(compiler)}.so" if directory else None
    if path and path.exists():
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as folder:
        compiled = _compile(compiler, Path(folder))
        if path:
            with contextlib.suppress(OSError):  # a home that cannot be written: compile at every start
                _keep(compiled, path)
        return ctypes.CDLL(str(compiled))


def _keep(compiled: Path, path: Path) -> None:
    """Puts the library into the cache at one stroke: another process may be doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(shutil.copy(compiled, folder)).replace(path)


def _fingerprint(compiler: str) -> str:
    """What the library depends on: source, compiler and processor (a home may be shared by machines)."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S)
    sources = [path.read_bytes() for path in sorted(SOURCE.parent.iterdir())]
    parts = (*sources, version.stdout, " ".join((*FLAGS, *sorted(processor_flags()))).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(compiler: str, folder: Path) -> Path:
    """Compiles the source; torch brings the OpenMP runtime, and two of them in one process would fight for cores.

    Raises:
        RuntimeError: If the compiler refuses.
    """
    unit, library = folder / "kernels.o", folder / "kernels.so"
    for command in (
        [compiler, *FLAGS, "-c", str(SOURCE), "-o", str(unit)],
        [compiler, "-shared", str(unit), "-o", str(library)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILE_TIMEOUT_S)
        if done.returncode:
            raise RuntimeError(f"{compiler}: {done.stderr.strip()[:500]}")
    return library
