"""Section `engine`: one step of this server's engine against other ways to judge the same tokens, without gRPC.

Three ways, on the same weights, context and threads:

- `ours`: a step of the backbone over its arena, for one sequence and for all at once;
- `cache`: transformers' own key-value cache, one stream after another, one token a call;
- `reforward`: the whole sequence again for every token, which is what the reference implementation does
  (QwenLM/Qwen3Guard issue 22).
"""

import statistics
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache, Qwen3Model

from guardwire_server.core.kv_arena import Extent
from guardwire_server.core.scheduler import Chunk, Read, StepPlan
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_device import choose_device_and_dtype
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.native_kernels import load_native_kernels
from guardwire_server.model.stream_backend import TorchStreamBackend
from tests.bench.progress import say
from tests.bench.settings import Settings

CONTEXT_TOKENS = 128
EXTENT_TOKENS = 256
TOKEN_ID = 1879


def measure_engine(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Milliseconds and tokens per second of each way, at a context of 128 tokens."""
    device, dtype = choose_device_and_dtype()
    say(f"loading the model for the engine's comparison ({str(dtype).removeprefix('torch.')}, {device})")
    guard = load_stream(open_checkpoint(str(checkpoint)), device, dtype)
    with torch.inference_mode():
        guard.model.set_attn_implementation("sdpa")
        seconds = {
            "reforward": _median_s("reforward", _reforward(guard.model, device), settings, device),
            "cache": _median_s("cache", _cached(guard.model, device), settings, device),
        }
        backend = TorchStreamBackend(guard, settings.num_streams * EXTENT_TOKENS, load_native_kernels())
        for name, num_streams in (("ours_one", 1), ("ours_many", settings.num_streams)):
            seconds[name] = _median_s(name, partial(backend.step, _plan(num_streams)), settings, device)
    tokens_per_s = {name: 1 / duration_s for name, duration_s in seconds.items()}
    tokens_per_s["ours_many"] *= settings.num_streams
    return {
        "context_tokens": CONTEXT_TOKENS,
        "num_threads": torch.get_num_threads(),
        "step_ms": {name: 1000 * duration_s for name, duration_s in seconds.items()},
        "tokens_per_s": tokens_per_s,
        "speedup_over_cache": tokens_per_s["ours_many"] / tokens_per_s["cache"],
        "speedup_over_reforward": tokens_per_s["ours_many"] / tokens_per_s["reforward"],
    }


def _plan(num_streams: int) -> StepPlan:
    """One token for each of some sequences; what the arena holds of the context is as good as any other numbers."""
    return StepPlan(
        (),
        tuple(
            Chunk(
                seq_id=number,
                epoch=0,
                start=CONTEXT_TOKENS,
                ids=array("i", [TOKEN_ID]),
                reads=bytes((Read.RESPONSE,)),
                extent=Extent(number * EXTENT_TOKENS, EXTENT_TOKENS),
            )
            for number in range(num_streams)
        ),
    )


def _reforward(model: Qwen3Model, device: torch.device) -> Callable[[], object]:
    ids = torch.full((1, CONTEXT_TOKENS + 1), TOKEN_ID, device=device)
    return lambda: model(input_ids=ids, use_cache=False)


def _cached(model: Qwen3Model, device: torch.device) -> Callable[[], object]:
    """Decodes on; the context grows by a token a call, which is less than the others' timing noise."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.full((1, CONTEXT_TOKENS), TOKEN_ID, device=device), past_key_values=cache, use_cache=True)
    token = torch.full((1, 1), TOKEN_ID, device=device)
    return lambda: model(input_ids=token, past_key_values=cache, use_cache=True)


def _median_s(name: str, work: Callable[[], object], settings: Settings, device: torch.device) -> float:
    """The median seconds of some repetitions, after two that do not count."""
    durations_s = []
    for _ in range(2 + settings.num_repeats):
        started_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations_s.append(time.perf_counter() - started_s)
    median_s = statistics.median(durations_s[2:])
    say(f"{name}: {1000 * median_s:.1f} ms")
    return median_s
