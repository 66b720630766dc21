"""Section `ceilings`: what this machine can do at most, and what a step of a model must therefore take at least.

A step reads every weight once and every cached key and value of its sequences, and multiplies every new token by every
weight. So, with T new tokens of which token i has context k_i,

    t >= max((W + B sum(k_i)) / bandwidth, (2 P T + 4 L N D sum(k_i)) / matrix rate)

W: bytes of the body's weights, P their number, B: bytes of one token's keys and values, L layers, N heads of size D.
The body is the layers without embedding and heads.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen3Config

from guardwire_server.model.native_kernels import load_native_kernels
from guardwire_server.model.projections import projection
from guardwire_server.model.ragged_attention import kv_bytes_per_token, num_kv_heads

_READ_BYTES = 512 * 2**20  # many times the caches
_NUM_REPEATS = 5
_MATRIX_ROWS = 256


@dataclass(frozen=True)
class Ceilings:
    """`bandwidth` in bytes a second, read by all threads; `matrix_rate` in floating point operations a second."""

    bandwidth: float
    matrix_rate: float

    def floor_s(self, config: Qwen3Config, contexts: Sequence[int], weight_bytes: int, kv_dtype: torch.dtype) -> float:
        """The least seconds of a step with one new token at each of these contexts."""
        num_parameters = body_parameters(config)
        kv_bytes = kv_bytes_per_token(config, kv_dtype) * sum(contexts)
        products = 2 * num_parameters * len(contexts)
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * sum(contexts)
        return max(
            (num_parameters * weight_bytes + kv_bytes) / self.bandwidth, (products + attention) / self.matrix_rate
        )


def body_parameters(config: Qwen3Config) -> int:
    """Weights of the linear layers of all decoder layers."""
    heads = (config.num_attention_heads * 2 + num_kv_heads(config) * 2) * config.head_dim
    return config.num_hidden_layers * config.hidden_size * (heads + 3 * config.intermediate_size)


class CeilingProbe:
    """Measures the ceilings, again and again: machines that others share change their speed within minutes."""

    def __init__(self, config: Qwen3Config, dtype: torch.dtype) -> None:
        """Prepares a read of memory and the products of the model's own shape and dtype, in all ways that are here."""
        self._memory = torch.ones(_READ_BYTES // 4)
        self._x = torch.randn(_MATRIX_ROWS, config.hidden_size).to(dtype)
        self._flop = 2 * config.intermediate_size * config.hidden_size * _MATRIX_ROWS
        weight = torch.randn(config.intermediate_size, config.hidden_size).bfloat16().to(dtype)
        self._ways = [projection(weight, kernels) for kernels in (load_native_kernels(), None)]

    def measure(self) -> Ceilings:
        """What the machine can do now, with all threads."""
        bandwidth = _READ_BYTES / _best_s(lambda: self._memory.sum())
        fastest_s = min(_best_s(lambda way=way: way(self._x)) for way in self._ways)  # type: ignore[misc]
        return Ceilings(bandwidth, self._flop / fastest_s)


def _best_s(work: Callable[[], object]) -> float:
    """A ceiling is the best of some repetitions; the median of the better half keeps one lucky reading out."""
    durations_s = []
    for _ in range(1 + _NUM_REPEATS):
        started_s = time.perf_counter()
        work()
        durations_s.append(time.perf_counter() - started_s)
    return statistics.median(sorted(durations_s[1:])[: (_NUM_REPEATS + 1) // 2])
