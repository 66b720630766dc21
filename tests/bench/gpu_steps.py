"""How long steps take on a GPU, and what they must take at least.

A step is timed from its plan to its verdicts on the host.
"""

import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.step_plan import Chunk, Read, StepPlan
from guardwire_server.model.ragged_attention import kv_bytes_per_token
from tests.bench.ceilings import body_parameters

TOKEN_ID = 187
NUM_WARM_UPS = 2
"""Libraries choose their kernels in the first calls."""


@dataclass(frozen=True)
class Load:
    """A step: each of `num_streams` takes `num_new` tokens behind `context` cached ones."""

    num_streams: int
    context: int
    num_new: int = 1

    @property
    def num_slots(self) -> int:
        """What the arena must hold."""
        return self.num_streams * (self.context + self.num_new)

    @property
    def label(self) -> str:
        """For the table."""
        if self.num_new > 1:
            return f"prompt of {self.num_new:,} tokens"
        return f"{self.num_streams:,} stream{'s' * (self.num_streams > 1)}, context {self.context:,}"

    def plan(self) -> StepPlan:
        """Every stream in an extent of its own, without gaps."""
        size, reads = self.context + self.num_new, bytes(self.num_new - 1) + bytes((Read.RESPONSE,))
        ids = array("i", [TOKEN_ID] * self.num_new)
        chunks = (
            Chunk(number, 0, self.context, ids, reads, Extent(number * size, size))
            for number in range(self.num_streams)
        )
        return StepPlan((), tuple(chunks))


@dataclass(frozen=True)
class Ceilings:
    """Measured on the device: bytes a second read or written, floating point operations a second in bfloat16."""

    bandwidth: float
    matrix_rate: float

    def floor_s(self, load: Load, config: Qwen3Config, dtype: torch.dtype) -> float:
        """The least seconds: each weight, key and value read once, each product computed once.

        As in ceilings.py, but a prompt's own keys count once: one pass of attention reads them for all its tokens.
        """
        num_parameters, num_tokens = body_parameters(config), load.num_streams * load.num_new
        num_bytes = num_parameters * dtype.itemsize + kv_bytes_per_token(config, dtype) * load.num_slots
        attended = load.num_streams * sum(load.context + offset + 1 for offset in range(load.num_new))
        width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
        return max(
            num_bytes / self.bandwidth, (2 * num_parameters * num_tokens + 4 * width * attended) / self.matrix_rate
        )


class Timer:
    """Times work on a device by the host's clock, which is what a caller waits by."""

    def __init__(self, device: torch.device, num_repeats: int) -> None:
        self._device = device
        self._num_repeats = num_repeats

    def each_s(self, work: Callable[[], object]) -> float:
        """The median seconds of a call whose work on the device is over."""
        return statistics.median(self._durations_s(work))

    def best_s(self, work: Callable[[], object]) -> float:
        """A ceiling is what was reached."""
        return min(self._durations_s(work))

    def _durations_s(self, work: Callable[[], object]) -> list[float]:
        durations_s = []
        for _ in range(NUM_WARM_UPS + self._num_repeats):
            self._synchronize()
            started_s = time.perf_counter()
            work()
            self._synchronize()
            durations_s.append(time.perf_counter() - started_s)
        return durations_s[NUM_WARM_UPS:]

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure_ceilings(timer: Timer, device: torch.device, num_bytes: int, matrix_size: int) -> Ceilings:
    """A copy, which reads and writes, and a square product of random numbers."""
    source = torch.randn(num_bytes // 2, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copy_s = timer.best_s(lambda: target.copy_(source))
    left, right = (torch.randn(matrix_size, matrix_size, device=device).to(torch.bfloat16) for _ in range(2))
    product_s = timer.best_s(lambda: left @ right)
    return Ceilings(2 * source.nbytes / copy_s, 2 * matrix_size**3 / product_s)


@torch.inference_mode()
def transformers_ways(model: Qwen3Model, contexts: Sequence[int], timer: Timer) -> dict[str, float]:
    """Seconds for one more token of one stream: through transformers' cache, and by reading everything again."""
    model.set_attn_implementation("sdpa")
    device = model.embed_tokens.weight.device
    token = torch.full((1, 1), TOKEN_ID, device=device)
    seconds = {}
    for context in contexts:
        whole = torch.full((1, context + 1), TOKEN_ID, device=device)
        cache = DynamicCache(config=model.config)
        model(input_ids=whole[:, :-1], past_key_values=cache, use_cache=True)
        seconds[f"transformers' cache, 1 stream, context {context:,}"] = timer.each_s(
            lambda cache=cache: model(input_ids=token, past_key_values=cache, use_cache=True)  # type: ignore[misc]
        )
        seconds[f"everything again, 1 stream, context {context:,}"] = timer.each_s(
            lambda whole=whole: model(input_ids=whole, use_cache=False)  # type: ignore[misc]
        )
    return seconds
