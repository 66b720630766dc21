"""From a checkpoint to a model that is ready to judge: weights, arena, scheduler, renderer, warmed up."""

import logging
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import Qwen3Model

from guardwire_server.core.errors import StartupError
from guardwire_server.core.kv_arena import KvArena
from guardwire_server.core.scheduler import Scheduler, SchedulerLimits
from guardwire_server.core.step_plan import Read
from guardwire_server.engine.backend import GenBackend, StreamBackend
from guardwire_server.model.backbone import Backbone, Stepper
from guardwire_server.model.checkpoint import Checkpoint, CheckpointKind, check_kind, open_checkpoint
from guardwire_server.model.checkpoint_template import load_chat_template
from guardwire_server.model.checkpoint_weights import LoadProgress, load_gen, load_stream
from guardwire_server.model.cuda_backbone import CudaBackbone, cuda_backbone
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.gen_backend import TorchGenBackend
from guardwire_server.model.memory import choose_arena
from guardwire_server.model.native_forward import can_run
from guardwire_server.model.native_kernels import NativeKernels
from guardwire_server.model.prompt import likely_answers, verdict_token_ids
from guardwire_server.model.renderers import GenRenderer, StreamRenderer
from guardwire_server.model.stream_backend import TorchStreamBackend
from guardwire_server.model.tokens import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

SMALL_STEP_TOKENS = 8
"""A step of a few streams with one token each."""

SLOWDOWN = 1.5
"""How many times as long a step of such streams may become for the sake of a prompt that is being read beside them.

Counted at the prompt's beginning: towards the end of a long one attention to all that was read makes it more."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model.

    `max_sequences`: how many at once, which bounds the arena. `kv_dtype` None: `dtype`. `max_context_tokens` None: the
    model's own. `kv_memory_gib` None: from what is free. `kernels` None: torch alone. `on_progress` gives, for a
    model's name, what hears how far loading is.
    """

    device: torch.device
    dtype: torch.dtype
    max_sequences: int
    step_limits: SchedulerLimits
    kv_dtype: torch.dtype | None = None
    max_context_tokens: int | None = None
    kv_memory_gib: float | None = None
    kernels: NativeKernels | None = None
    on_progress: Callable[[str], LoadProgress] | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What both families have in common. `longest_step_s`: a step of the whole token budget, measured."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    scheduler: Scheduler
    max_context_tokens: int
    longest_step_s: float
    device_name: str
    dtype_name: str


@dataclass(frozen=True, slots=True)
class StreamModel(LoadedModel):
    """A Qwen3Guard-Stream model, ready to judge."""

    backend: TorchStreamBackend
    renderer: StreamRenderer


@dataclass(frozen=True, slots=True)
class GenModel(LoadedModel):
    """A Qwen3Guard-Gen model, ready to judge."""

    backend: TorchGenBackend
    renderer: GenRenderer


def open_as(kind: CheckpointKind, name_or_path: str) -> Checkpoint:
    """Opens the checkpoint that the setting of a family names.

    Raises:
        StartupError: If it cannot be served, or is of the other family; the message names the setting.
    """
    try:
        checkpoint = open_checkpoint(name_or_path)
        check_kind(checkpoint.kind, kind, checkpoint.name)
    except StartupError as error:
        raise StartupError(f"{kind.setting}: {error.message}") from error
    if checkpoint.is_demo:
        logger.warning("%s: a small demo checkpoint for trying things out; do not rely on what it says", kind.setting)
    return checkpoint


def load_stream_model(checkpoint: Checkpoint, options: LoadOptions) -> StreamModel:
    """Loads a Qwen3Guard-Stream checkpoint.

    Raises:
        StartupError: If a file is missing or damaged, or the memory is too small.
    """
    tokenizer = load_tokenizer(checkpoint)
    guard = load_stream(checkpoint, options.device, options.dtype, _progress(checkpoint, options))
    scheduler, max_context_tokens = _scheduler(checkpoint, options)
    backbone = _backbone(guard.model, scheduler, options)
    backend = TorchStreamBackend(guard, backbone)
    longest_step_s = _warm_up(scheduler, backend, Read.RESPONSE, options)
    _tell(checkpoint, guard.model, backbone, options, max_context_tokens)
    return StreamModel(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        scheduler=scheduler,
        max_context_tokens=max_context_tokens,
        longest_step_s=longest_step_s,
        device_name=str(options.device),
        dtype_name=_dtype_name(options.dtype),
        backend=backend,
        renderer=StreamRenderer(tokenizer),
    )


def load_gen_model(checkpoint: Checkpoint, options: LoadOptions) -> GenModel:
    """Loads a Qwen3Guard-Gen checkpoint; otherwise as `load_stream_model`."""
    tokenizer = load_tokenizer(checkpoint)
    template = load_chat_template(checkpoint.path)
    verdict = verdict_token_ids(tokenizer)
    end_ids = checkpoint.eos_token_ids or (tokenizer.control.im_end,)
    weights = load_gen(checkpoint, options.device, options.dtype, _progress(checkpoint, options))
    scheduler, max_context_tokens = _scheduler(checkpoint, options)
    backbone = _backbone(weights.backbone, scheduler, options)
    backend = TorchGenBackend(
        backbone,
        weights.lm_head,
        end_ids=frozenset(end_ids),
        verdict_prefix=verdict.prefix_ids,
        verdict_ids=(verdict.safe_id, verdict.controversial_id, verdict.unsafe_id),
        likely_answers=likely_answers(tokenizer, end_ids[0]),
        kernels=options.kernels,
    )
    longest_step_s = _warm_up(scheduler, backend, Read.LOGITS, options)
    _tell(checkpoint, weights.backbone, backbone, options, max_context_tokens)
    return GenModel(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        scheduler=scheduler,
        max_context_tokens=max_context_tokens,
        longest_step_s=longest_step_s,
        device_name=str(options.device),
        dtype_name=_dtype_name(options.dtype),
        backend=backend,
        renderer=GenRenderer(tokenizer, template),
    )


def build_backbone(
    model: Qwen3Model,
    num_slots: int,
    largest: StepSize,
    kernels: NativeKernels | None = None,
    kv_dtype: torch.dtype | None = None,
) -> Stepper:
    """The fastest way to step through a loaded model that there is on its device; arguments as in Backbone.

    `largest` is the largest step that is to be expected.
    """
    on_gpu = model.embed_tokens.weight.device.type == "cuda"
    fast = cuda_backbone(model, num_slots, largest, kv_dtype) if on_gpu else None
    return fast or Backbone(model, num_slots, kernels, kv_dtype)


def _backbone(model: Qwen3Model, scheduler: Scheduler, options: LoadOptions) -> Stepper:
    limits = options.step_limits
    largest = StepSize(limits.max_num_batched_tokens, limits.max_num_seqs, scheduler.max_sequence_tokens)
    return build_backbone(model, scheduler.arena_tokens, largest, options.kernels, options.kv_dtype)


def _tell(
    checkpoint: Checkpoint, model: Qwen3Model, backbone: Stepper, options: LoadOptions, max_context_tokens: int
) -> None:
    """Logs how a model runs."""
    keys, values = backbone.kv.keys, backbone.kv.values
    if isinstance(backbone, CudaBackbone):
        means = "flash attention"
    elif options.kernels and can_run(model, options.kernels, keys.dtype):
        means = "native kernels"
    else:
        means = "torch alone"
    logger.info(
        "%s: %s, revision %s, on %s in %s with %s; conversations of up to %d tokens; "
        "keys and values of %d tokens in %s, %.3g GiB",
        checkpoint.kind.setting,
        checkpoint.name,
        checkpoint.revision,
        options.device,
        _dtype_name(options.dtype),
        means,
        max_context_tokens,
        keys.shape[2],
        _dtype_name(keys.dtype),
        (keys.nbytes + values.nbytes) / 2**30,
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _scheduler(checkpoint: Checkpoint, options: LoadOptions) -> tuple[Scheduler, int]:
    """A scheduler with its arena, and the longest conversation that it allows."""
    wanted = min(options.max_context_tokens or checkpoint.max_context_tokens, checkpoint.max_context_tokens)
    if options.max_context_tokens and wanted < options.max_context_tokens:
        logger.warning(
            "max_context_tokens: %d are wanted, but conversations with %s are limited to %d, which it was made for",
            options.max_context_tokens,
            checkpoint.name,
            wanted,
        )
    num_roots, root_tokens = choose_arena(
        checkpoint.config,
        options.device,
        options.kv_dtype or options.dtype,
        max_context_tokens=wanted,
        max_sequences=options.max_sequences,
        memory_gib=options.kv_memory_gib,
    )
    max_context_tokens = min(wanted, root_tokens)
    if max_context_tokens < wanted:
        logger.warning("%s: the memory limits conversations to %d tokens", checkpoint.name, max_context_tokens)
    return Scheduler(KvArena(num_roots, root_tokens), options.step_limits), max_context_tokens


def _warm_up(scheduler: Scheduler, backend: StreamBackend | GenBackend, read: Read, options: LoadOptions) -> float:
    """Runs the largest step, so that the first caller does not wait for it; returns its seconds.

    For streams, whose callers wait for single tokens, a small step is measured too, and with it how many tokens of long
    sequences make such a step SLOWDOWN times as long.
    """
    num_tokens = min(options.step_limits.max_num_batched_tokens, scheduler.max_sequence_tokens)
    longest_step_s = _measure_step(scheduler, backend, read, num_tokens)
    if read is Read.RESPONSE and num_tokens > SMALL_STEP_TOKENS:
        small_step_s = _measure_step(scheduler, backend, read, SMALL_STEP_TOKENS)
        token_s = (longest_step_s - small_step_s) / (num_tokens - SMALL_STEP_TOKENS)
        if token_s > 0:
            beside = int((SLOWDOWN - 1) * small_step_s / token_s)
            scheduler.long_tokens_beside_short = min(num_tokens, max(SMALL_STEP_TOKENS, beside))
    return longest_step_s


def _measure_step(scheduler: Scheduler, backend: StreamBackend | GenBackend, read: Read, num_tokens: int) -> float:
    """The seconds of the better of two steps with so many tokens of one sequence."""
    durations_s = []
    for _ in range(2):
        scheduler.add(-1)
        scheduler.extend(-1, array("i", bytes(4 * num_tokens)), bytes(num_tokens - 1) + bytes((read,)))
        plan = scheduler.schedule()
        started_s = time.monotonic()
        backend.step(plan)
        durations_s.append(time.monotonic() - started_s)
        scheduler.complete(plan)
        scheduler.remove(-1)
    return min(durations_s)


def _progress(checkpoint: Checkpoint, options: LoadOptions) -> LoadProgress | None:
    return options.on_progress(checkpoint.name) if options.on_progress else None
