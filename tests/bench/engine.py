"""Section `engine`: one step of this server's engine against other ways to judge the same tokens, without gRPC.

Three ways, on the same weights, context and threads:

- `ours`: a step of the backbone over its arena, for one sequence and for all at once;
- `cache`: transformers' own key-value cache, one stream after another, one token a call;
- `reforward`: the whole sequence again for every token, which is what the reference implementation does
  (QwenLM/Qwen3Guard issue 22).

Every figure of ours comes with its floor (tests/bench/ceilings.py): what the step must take at least on this machine.
"""

import statistics
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache, Qwen3Model

from guardwire_server.core.kv_arena import Extent, extent_capacity
from guardwire_server.core.step_plan import Chunk, Read, StepPlan
from guardwire_server.model.backbone import Stepper
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_device import choose_device_and_dtype, choose_kv_dtype
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.loading import build_backbone
from guardwire_server.model.native_kernels import load_native_kernels
from tests.bench.ceilings import Ceilings, body_parameters, measure_ceilings
from tests.bench.progress import say
from tests.bench.settings import Settings

CONTEXT_TOKENS = 512
PREFILL_TOKENS = 512
GROWTH_CONTEXTS = (64, 512, 4096)
TOKEN_ID = 1879
MIN_REPEATS = 3
QUICK_LIMIT_S = 10.0


def measure_engine(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Milliseconds, floors and ratios of each way."""
    device, dtype = choose_device_and_dtype()
    say(f"loading the model for the engine's comparison ({str(dtype).removeprefix('torch.')}, {device})")
    model = load_stream(open_checkpoint(str(checkpoint)), device, dtype).model
    config, many = model.config, settings.num_streams
    ceilings = measure_ceilings(config)
    with torch.inference_mode():
        model.set_attn_implementation("sdpa")
        seconds = {
            "reforward": _median_s("reforward", _reforward(model, device), settings, device),
            "cache": _median_s("cache", _cached(model, device), settings, device),
        }
        kernels = load_native_kernels() if device.type == "cpu" else None
        kv_dtype = choose_kv_dtype("auto", "auto", dtype, is_converted_in_kernel=kernels is not None)
        extent_tokens = extent_capacity(max(GROWTH_CONTEXTS) + 1)
        largest = StepSize(PREFILL_TOKENS, many, extent_tokens)
        backbone = build_backbone(model, many * extent_tokens, largest, kernels, kv_dtype)
        _fill(backbone, many)
        seconds["prefill"] = _median_s("prefill", partial(backbone.step, _prefill()), settings, device)
        seconds["ours_one"] = _median_s("ours_one", partial(backbone.step, _plan(1, CONTEXT_TOKENS)), settings, device)
        for context in GROWTH_CONTEXTS:
            name = f"ours_many_{context}"
            seconds[name] = _median_s(name, partial(backbone.step, _plan(many, context)), settings, device)
    # The weights lie in bfloat16 wherever kernels or the dtype allow it.
    weight_bytes = 2 if kernels or dtype.itemsize == 2 else dtype.itemsize
    floor = partial(ceilings.floor_s, config, weight_bytes=weight_bytes, kv_dtype=kv_dtype)
    floors = {"ours_one": floor([CONTEXT_TOKENS])} | {
        f"ours_many_{context}": floor([context] * many) for context in GROWTH_CONTEXTS
    }
    floors["prefill"] = floor(list(range(PREFILL_TOKENS)))
    context = settings.context_tokens
    return {
        "context_tokens": CONTEXT_TOKENS,
        "dtype": str(dtype).removeprefix("torch."),
        "kv_dtype": str(kv_dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "has_native_kernels": kernels is not None,
        "bandwidth_gb_per_s": ceilings.bandwidth / 1e9,
        "matrix_gflop_per_s": ceilings.matrix_rate / 1e9,
        # One stream waits for memory, many for arithmetic: what the machine allows section `streams` to show at most.
        "speedup_of_floors": many * floor([context]) / floor([context] * many),
        "step_ms": {name: 1000 * duration_s for name, duration_s in seconds.items()},
        "floor_ms": {name: 1000 * floor_s for name, floor_s in floors.items()},
    } | _ratios(seconds, floors, many, ceilings, PREFILL_TOKENS * 2 * body_parameters(config))


def _ratios(
    seconds: dict[str, float], floors: dict[str, float], many: int, ceilings: Ceilings, prefill_flop: int
) -> dict[str, object]:
    """What the bars are about."""
    ours_many = seconds[f"ours_many_{CONTEXT_TOKENS}"]
    shortest, longest = (f"ours_many_{GROWTH_CONTEXTS[index]}" for index in (0, -1))
    return {
        "many_over_cache": many * seconds["cache"] / ours_many,
        "many_over_reforward": many * seconds["reforward"] / ours_many,
        "many_of_floor": floors[f"ours_many_{CONTEXT_TOKENS}"] / ours_many,
        "one_over_cache": seconds["cache"] / seconds["ours_one"],
        "one_of_floor": floors["ours_one"] / seconds["ours_one"],
        "prefill_of_matrix_rate": prefill_flop / seconds["prefill"] / ceilings.matrix_rate,
        "growth_over_floors": (seconds[longest] / seconds[shortest]) / (floors[longest] / floors[shortest]),
    }


def _fill(backbone: Stepper, num_streams: int) -> None:
    """Writes the slots that will be read: memory that nobody has written costs nothing to read."""
    extent_tokens = extent_capacity(max(GROWTH_CONTEXTS) + 1)
    for number in range(num_streams):
        for tensor in (backbone.kv.keys, backbone.kv.values):
            tensor[:, :, number * extent_tokens : number * extent_tokens + max(GROWTH_CONTEXTS) + 1] = 0.1


def _plan(num_streams: int, context: int) -> StepPlan:
    """One token for each of some sequences; what the arena holds of the context is as good as any other numbers."""
    extent_tokens = extent_capacity(max(GROWTH_CONTEXTS) + 1)
    return StepPlan(
        (),
        tuple(
            Chunk(
                seq_id=number,
                epoch=0,
                start=context,
                ids=array("i", [TOKEN_ID]),
                reads=bytes((Read.RESPONSE,)),
                extent=Extent(number * extent_tokens, extent_tokens),
            )
            for number in range(num_streams)
        ),
    )


def _prefill() -> StepPlan:
    """A whole prompt of one sequence."""
    ids = array("i", [TOKEN_ID] * PREFILL_TOKENS)
    chunk = Chunk(seq_id=0, epoch=0, start=0, ids=ids, reads=bytes(len(ids)), extent=Extent(0, len(ids)))
    return StepPlan((), (chunk,))


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
    """The median seconds of some repetitions, after one that does not count; of slow work in a quick run, of three."""
    durations_s: list[float] = []
    while len(durations_s) <= settings.num_repeats:
        started_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations_s.append(time.perf_counter() - started_s)
        if settings.name == "quick" and len(durations_s) > MIN_REPEATS and sum(durations_s) > QUICK_LIMIT_S:
            break
    median_s = statistics.median(durations_s[1:])
    say(f"{name}: {1000 * median_s:.1f} ms")
    return median_s
