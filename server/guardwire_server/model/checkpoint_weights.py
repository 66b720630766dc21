"""Loads the models, one tensor at a time.

The modules are made on the meta device, which allocates nothing; then each tensor is read, brought to its device and
dtype, and put in its place. So the peak is the model in its dtype plus one tensor.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from guardwire_server.core.errors import StartupError
from guardwire_server.model.checkpoint import Checkpoint, CheckpointKind
from guardwire_server.model.checkpoint_files import WeightFiles
from guardwire_server.model.stream_guard import StreamGuard

logger = logging.getLogger(__name__)

LoadProgress = Callable[[int, int], None]
"""Called after each tensor with the number of parameters loaded so far and in all."""

_LM_HEAD = "lm_head.weight"
_PRE_HEAD = "risk_level_category_pre.weight"
_MAX_NAMED_KEYS = 3


@dataclass(frozen=True, eq=False)
class GenWeights:
    """A causal language model's parts.

    Attributes:
        backbone: Qwen3, in evaluation mode.
        lm_head: [V, H], of the backbone's dtype and on its device: logits = hidden lm_head^T, hidden taken after the
            final norm. The embedding itself where the two are tied.
    """

    backbone: Qwen3Model
    lm_head: torch.Tensor


class _CausalParts(nn.Module):
    """The parts of `Qwen3ForCausalLM`, named as in its state dict."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.model = Qwen3Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def load_stream(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, on_progress: LoadProgress | None = None
) -> StreamGuard:
    """Loads Qwen3Guard-Stream, in evaluation mode and without gradients.

    Args:
        checkpoint: An opened checkpoint of that family.
        device: Where the model shall run.
        dtype: What its weights are converted to; the rotary frequencies stay float32.
        on_progress: Hears how far it is.

    Raises:
        StartupError: It is of the other family, or a file or tensor is missing, damaged or of another shape; the
            message names file and key.
    """
    _check_kind(checkpoint, CheckpointKind.STREAM)
    assert checkpoint.labels is not None  # open_checkpoint reads them for this family
    files = WeightFiles(checkpoint.path)
    inner_size = checkpoint.guard_inner_size or next(iter(files.shape(_PRE_HEAD)), 1)
    with torch.device("meta"):
        guard = StreamGuard(checkpoint.config, inner_size, checkpoint.labels)
    _fill(guard, files, device, dtype, on_progress)
    _finish_backbone(guard.model, device)
    guard.set_labels(checkpoint.labels)
    return guard.eval()


def load_gen(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, on_progress: LoadProgress | None = None
) -> GenWeights:
    """Loads Qwen3Guard-Gen; otherwise as `load_stream`.

    With tied embeddings an `lm_head.weight` in the files is ignored; without, it must be there.
    """
    _check_kind(checkpoint, CheckpointKind.GEN)
    with torch.device("meta"):
        parts = _CausalParts(checkpoint.config)
    _fill(parts, WeightFiles(checkpoint.path), device, dtype, on_progress)
    _finish_backbone(parts.model, device)
    tied = checkpoint.config.tie_word_embeddings
    head = parts.model.embed_tokens.weight if tied else parts.lm_head.weight
    parts.eval()
    return GenWeights(backbone=parts.model, lm_head=head.detach())


def _check_kind(checkpoint: Checkpoint, kind: CheckpointKind) -> None:
    if checkpoint.kind is not kind:
        raise StartupError(
            f"{checkpoint.path / 'config.json'}: architectures is {checkpoint.kind.value}; "
            f"a Qwen3Guard-{kind.name.title()} checkpoint ({kind.value}) is needed here"
        )


def _fill(
    module: nn.Module,
    files: WeightFiles,
    device: torch.device,
    dtype: torch.dtype,
    on_progress: LoadProgress | None,
) -> None:
    """Replaces every parameter of a module on the meta device."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    unexpected = sorted(files.keys() - shapes.keys() - {_LM_HEAD})
    if unexpected:
        shown = ", ".join(unexpected[:_MAX_NAMED_KEYS])
        logger.warning("ignoring %d tensors that the model has no place for: %s …", len(unexpected), shown)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    num_loaded = 0
    for name, tensor in files.read(shapes, device, dtype):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))
        num_loaded += tensor.numel()
        if on_progress:
            on_progress(num_loaded, num_parameters)


def _finish_backbone(backbone: Qwen3Model, device: torch.device) -> None:
    """Makes what is computed rather than stored: the rotary frequencies, in float32 whatever the dtype."""
    backbone.rotary_emb = Qwen3RotaryEmbedding(backbone.config).to(device)
