"""The models that the configuration names, loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from guardwire_server import demo
from guardwire_server.config import ServerConfig
from guardwire_server.core.scheduler import SchedulerLimits
from guardwire_server.model.checkpoint import CheckpointKind
from guardwire_server.model.checkpoint_device import choose_device_and_dtype, choose_kv_dtype
from guardwire_server.model.checkpoint_weights import LoadProgress
from guardwire_server.model.loading import (
    GenModel,
    LoadOptions,
    StreamModel,
    load_gen_model,
    load_stream_model,
    open_as,
)
from guardwire_server.model.native_kernels import load_native_kernels

MAX_NUM_BATCHED_TOKENS = {"cpu": 256, "cuda": 4096}
"""Token budget of a step by device: a CPU computes every token, a GPU's step costs the same up to hundreds."""


@dataclass(frozen=True, slots=True)
class Models:
    """What the server judges with; at least one is there."""

    stream: StreamModel | None
    gen: GenModel | None


def load_models(config: ServerConfig, on_progress: Callable[[str], LoadProgress] | None = None) -> Models:
    """Loads the configured models.

    Args:
        config: All settings.
        on_progress: Gives, for a model's name, what is called with the parameters loaded and in all.

    Raises:
        StartupError: If a checkpoint or a setting is not as it must be.
    """
    device, dtype = choose_device_and_dtype(config.device, config.dtype)
    kernels = load_native_kernels() if config.native_kernels and device.type == "cpu" else None
    if config.num_threads:
        torch.set_num_threads(config.num_threads)

    def options(kind: CheckpointKind, max_sequences: int) -> LoadOptions:
        # Gen's answer must be that of its own dtype to the letter, and it reads its keys a few times only.
        is_free = kernels is not None and kind is CheckpointKind.STREAM
        max_num_batched_tokens = config.max_num_batched_tokens or MAX_NUM_BATCHED_TOKENS[device.type]
        return LoadOptions(
            device=device,
            dtype=dtype,
            kv_dtype=choose_kv_dtype(config.kv_dtype, config.dtype, dtype, is_converted_in_kernel=is_free),
            max_sequences=max_sequences,
            step_limits=SchedulerLimits(
                max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=config.max_num_seqs
            ),
            max_context_tokens=config.max_context_tokens,
            kv_memory_gib=config.kv_memory_gib,
            kernels=kernels,
            on_progress=on_progress,
        )

    stream = gen = None
    if config.stream_model != "none":
        path = str(demo.stream_checkpoint_directory()) if config.stream_model == "demo" else config.stream_model
        checkpoint = open_as(CheckpointKind.STREAM, path)
        stream = load_stream_model(checkpoint, options(CheckpointKind.STREAM, config.max_sessions))
    if config.gen_model != "none":
        path = str(demo.gen_checkpoint_directory()) if config.gen_model == "demo" else config.gen_model
        checkpoint = open_as(CheckpointKind.GEN, path)
        gen = load_gen_model(checkpoint, options(CheckpointKind.GEN, config.max_classify_calls))
    return Models(stream, gen)
