"""How much memory a model's arena may take."""

import logging
import os
from pathlib import Path

import torch
from transformers import Qwen3Config

from guardwire_server.core.errors import StartupError
from guardwire_server.core.kv_arena import arena_shape
from guardwire_server.model.ragged_attention import kv_bytes_per_token

logger = logging.getLogger(__name__)

FREE_SHARE = {"cpu": 0.25, "cuda": 0.4}
"""The share of free memory that one model's arena takes when nothing else is said: two models fit, with a reserve."""

_GIB = 2**30


def choose_arena(
    config: Qwen3Config,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_context_tokens: int,
    max_sequences: int,
    memory_gib: float | None,
) -> tuple[int, int]:
    """The arena's number of roots and tokens per root (core.kv_arena.arena_shape).

    Args:
        config: The backbone.
        device: Where the arena will lie.
        dtype: What it will hold.
        max_context_tokens: The longest sequence.
        max_sequences: More room than all of them at full length is never taken.
        memory_gib: What to take, in GiB; None: FREE_SHARE of what is free.

    Raises:
        StartupError: If the memory does not hold even a short conversation.
    """
    budget_bytes = memory_gib * _GIB if memory_gib else free_memory_bytes(device) * FREE_SHARE[device.type]
    per_token = kv_bytes_per_token(config, dtype)
    useful_tokens = max_sequences * max(64, max_context_tokens) * 2
    max_tokens = min(int(budget_bytes // per_token), useful_tokens)
    if memory_gib and useful_tokens * per_token < budget_bytes:
        logger.warning(
            "kv_memory_gib: %g GiB are wanted, but %.3g GiB are taken: %d conversations of %d tokens never need more",
            memory_gib,
            useful_tokens * per_token / _GIB,
            max_sequences,
            max_context_tokens,
        )
    try:
        return arena_shape(max_tokens, max_context_tokens)
    except ValueError as error:
        raise StartupError(f"kv_memory_gib: {budget_bytes / _GIB:.3f} GiB are too little: {error}") from None


def free_memory_bytes(device: torch.device) -> int:
    """Memory of a device that can be taken now without pushing anybody out."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return available_host_bytes()


def available_host_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What the host has, or less where a container may take less.

    What files occupy counts as free: the kernel gives it back, and after a checkpoint was read it is most of the
    memory. So `MemAvailable` and not `MemFree`, and what the container uses without its inactive file pages (as
    Kubernetes counts it) against its limit.
    """
    try:
        available_kib = _read_counters(meminfo)["MemAvailable"]
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = available_kib * 1024
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        reclaimable = _read_counters(cgroup / "memory.stat")["inactive_file"]
    except (OSError, ValueError, KeyError):  # no second version of cgroups here, or the limit is `max`
        return available
    return max(0, min(available, limit - used + reclaimable))


def _read_counters(file: Path) -> dict[str, int]:
    """Lines of a name and a number, with or without a colon and a unit."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {fields[0].removesuffix(":"): int(fields[1]) for fields in lines if len(fields) > 1}
