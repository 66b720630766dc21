"""Raw bytes wherever strangers' bytes arrive, led by coverage: `python -m tests.fuzz.raw_bytes --seconds 60`.

Every target runs in a process of its own, all at the same time. The corpus is made at the start, of good messages and
files. An input that fails is left in `--artifacts` and tried again with `--target NAME --replay FILE`.

It needs atheris, a package that exists for Linux and macOS.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

TARGETS = {
    "events": ("raw_events", "EventsTarget"),
    "files": ("raw_files", "FilesTarget"),
    "calls": ("raw_calls", "CallsTarget"),
}
"""By name: where bytes arrive. The module is loaded by its target's process alone, instrumented."""

MAX_INPUT_BYTES = 4096
MAX_INPUT_SECONDS = 60
"""A single input that takes longer is a fault."""

START_SECONDS = 120.0
"""What a process may take before its first input: it loads torch and makes checkpoints."""


class Target(Protocol):
    """Where bytes arrive."""

    words: Sequence[str]  # to put into inputs

    def seeds(self) -> Iterator[bytes]:
        """Good inputs to begin with."""

    def try_input(self, data: bytes) -> None:
        """Raises if these bytes do what no bytes may do."""

    def close(self) -> None:
        """Raises if all inputs together have left something behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one target, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.raw_bytes")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, for each target")
    parser.add_argument("--target", choices=TARGETS, help="this one only")
    parser.add_argument("--artifacts", type=Path, default=Path("build/fuzz"), help="where inputs that fail are left")
    parser.add_argument("--replay", type=Path, help="try this one input, with --target")
    options = parser.parse_args(arguments)
    options.artifacts.mkdir(parents=True, exist_ok=True)
    if options.target is None:
        return _run_all(options.seconds, options.artifacts)
    if options.replay:
        target = _load(options.target)
        target.try_input(options.replay.read_bytes())
        target.close()
        return 0
    _fuzz(options.target, options.seconds, options.artifacts)
    return 0


def _run_all(seconds: float, artifacts: Path) -> int:
    """Runs a process for each target; returns 1 if one of them failed."""
    command = [sys.executable, "-m", "tests.fuzz.raw_bytes", "--seconds", str(seconds), "--artifacts", str(artifacts)]
    processes = [subprocess.Popen([*command, "--target", name]) for name in TARGETS]
    statuses = [process.wait() for process in processes]
    return int(any(statuses))


def _load(name: str) -> Target:
    module, class_name = TARGETS[name]
    target: Target = getattr(importlib.import_module(f"tests.fuzz.{module}"), class_name)()
    return target


def _fuzz(name: str, seconds: float, artifacts: Path) -> None:
    """Runs a target for so long and ends the process: libFuzzer does not come back."""
    atheris: Any = importlib.import_module("atheris")  # has no types, and not everybody has it

    with atheris.instrument_imports(include=["guardwire_server"]):
        target = _load(name)
    corpus = artifacts / "corpus" / name
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir(parents=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(seed)
    num_seeds, num_inputs, began_s = number + 1, 0, time.monotonic()

    def try_input(data: bytes) -> None:
        nonlocal num_inputs
        if num_inputs < num_seeds or time.monotonic() - began_s < seconds:
            num_inputs += 1
            target.try_input(data)
            return
        target.close()
        print(f"{name}: {num_inputs} inputs", flush=True)
        os._exit(0)

    dictionary = artifacts / "corpus" / f"{name}.dict"
    lines = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words)
    dictionary.write_text("".join(f'"{line}"\n' for line in lines))
    flags = [f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_INPUT_SECONDS}", f"-dict={dictionary}"]
    atheris.Setup([name, *flags, f"-artifact_prefix={artifacts}/{name}-", str(corpus)], try_input)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
