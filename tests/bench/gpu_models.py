"""Random models of the published shapes, made in the device's memory: speed does not depend on what the weights are."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import nn
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from guardwire_server.core.verdict import Category, RiskLevel
from guardwire_server.model.checkpoint_config import HeadLabels, StreamLabels
from guardwire_server.model.stream_guard import StreamGuard

_LOGIT_SCALE = 2.0
_NORM_SPREAD = 0.1
_LABELS = HeadLabels(tuple(RiskLevel), tuple(Category))


@dataclass(frozen=True)
class Shape:
    """The numbers of a Qwen3Guard-Stream model."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int = 8
    head_dim: int = 128
    vocabulary_size: int = 151_936

    def config(self) -> Qwen3Config:
        """What transformers builds such a model from."""
        return Qwen3Config(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocabulary_size,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )


SHAPES = (
    Shape("0.6B", hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16),
    Shape("4B", hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32),
    Shape("8B", hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32),
)
"""Source: config.json of the published checkpoints, Qwen/Qwen3Guard-Stream-0.6B and so on."""

REHEARSAL = Shape(
    "tiny",
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocabulary_size=512,
)


def random_guard(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> StreamGuard:
    """A lively model: labels differ from token to token.

    The weights are those of bfloat16 in every dtype, so that the same seed gives the same model.
    """
    config = shape.config()
    with torch.device("meta"):
        guard = StreamGuard(config, shape.hidden_size // 2, StreamLabels(_LABELS, _LABELS))
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in tuple(guard.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        weight = _random(name, parameter.shape, generator).to(torch.bfloat16).to(dtype)
        setattr(guard.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=False))
    guard.model.rotary_emb = Qwen3RotaryEmbedding(config).to(device)
    guard.set_labels(StreamLabels(_LABELS, _LABELS))
    return guard.eval()


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """float32 weights that keep a scale of 1: a norm's around 1, a matrix's by the number of its columns."""
    weight = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) == 1:
        return 1 + _NORM_SPREAD * weight
    is_loud = "embed_tokens" in name or name.endswith("_head.weight")
    return weight * (_LOGIT_SCALE if is_loud else 1.0) / sqrt(shape[1])
