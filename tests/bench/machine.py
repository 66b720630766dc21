"""Where and with what a result was measured: hardware, versions, commit. No names of hosts, users or folders."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("guardwire-server", "torch", "transformers", "tokenizers", "grpcio", "protobuf")


def describe_machine() -> dict[str, Any]:
    """The processor, the memory, and how busy others keep it: to be called before anything is measured."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def describe_versions() -> dict[str, str]:
    """What matters for speed."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def describe_commit() -> dict[str, object]:
    """The checkout's commit, and whether files differ from it."""
    return {"id": _git("rev-parse", "HEAD"), "is_changed": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
