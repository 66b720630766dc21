"""Section `engine`: one step of this server's engine against other ways to judge the same tokens, without gRPC.

Three ways, on the same weights, context and threads:

- `ours`: a step of the backbone over its arena, for one sequence and for all at once;
- `cache`: transformers' own key-value cache, one stream after another, one token a call;
- `reforward`: the whole sequence again for every token, which is what the reference implementation does
  (QwenLM/Qwen3Guard issue 22).

Every figure of ours comes with its floor (tests/bench/ceilings.py): what the step must take at least on this machine.

A round measures the machine and then every way once, so that a ratio compares what was measured within some seconds:
a shared machine is half as fast again some minutes later.
"""

import statistics
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3Model

from guardwire_server.core.kv_arena import Extent, extent_capacity
from guardwire_server.core.step_plan import Chunk, Read, StepPlan
from guardwire_server.model.backbone import Stepper
from guardwire_server.model.checkpoint import open_checkpoint
from guardwire_server.model.checkpoint_device import choose_device_and_dtype, choose_kv_dtype
from guardwire_server.model.checkpoint_weights import load_stream
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.loading import build_backbone
from guardwire_server.model.native_kernels import NativeKernels, load_native_kernels
from tests.bench.ceilings import CeilingProbe, Ceilings, body_parameters
from tests.bench.progress import say
from tests.bench.settings import Settings

CONTEXT_TOKENS = 512
PREFILL_TOKENS = 512
GROWTH_CONTEXTS = (64, 512, 4096)
TOKEN_ID = 1879
QUICK_ROUNDS = 3
FAST_S = 0.5
FAST_REPEATS = 3
"""What takes less than this is timed so many times in a round."""

Way = Callable[[], object]


@dataclass(frozen=True)
class Round:
    """Every way once, and what the machine could do meanwhile: seconds by the names of the ways."""

    ceilings: Ceilings
    seconds: Mapping[str, float]
    floors: Mapping[str, float]


def measure_engine(checkpoint: Path, settings: Settings) -> dict[str, object]:
    """Milliseconds, floors and ratios of each way; ratios are medians of the rounds' own."""
    device, dtype = choose_device_and_dtype()
    say(f"loading the model twice for the engine's comparison ({str(dtype).removeprefix('torch.')}, {device})")
    plain, model = (load_stream(open_checkpoint(str(checkpoint)), device, dtype).model for _ in range(2))
    plain.set_attn_implementation("sdpa")
    config, many = model.config, settings.num_streams
    kernels = load_native_kernels() if device.type == "cpu" else None
    kv_dtype = choose_kv_dtype("auto", "auto", dtype, is_converted_in_kernel=kernels is not None)
    # The weights lie in bfloat16 wherever kernels or the dtype allow it.
    weight_bytes = 2 if kernels or dtype.itemsize == 2 else dtype.itemsize
    probe, rounds = CeilingProbe(config, dtype), list[Round]()
    with torch.inference_mode():
        backbone = _filled_backbone(model, many, kernels, kv_dtype)
        ways = _ways(plain, backbone, many, device)
        for name, way in ways.items():
            say(f"{name}: {1000 * _seconds(way, device):.0f} ms the first time")
        for number in range(settings.num_repeats if settings.name == "full" else QUICK_ROUNDS):
            ceilings = probe.measure()
            seconds = {name: _seconds(way, device) for name, way in ways.items()}
            rounds.append(Round(ceilings, seconds, _floors(ceilings, config, many, weight_bytes, kv_dtype)))
            figures = ", ".join(f"{name} {1000 * duration_s:.0f} ms" for name, duration_s in seconds.items())
            say(f"round {number + 1}: {figures}")
    prefill_flop = PREFILL_TOKENS * 2 * body_parameters(config)
    ceilings = Ceilings(
        statistics.median(one.ceilings.bandwidth for one in rounds),
        statistics.median(one.ceilings.matrix_rate for one in rounds),
    )
    floor = partial(ceilings.floor_s, config, weight_bytes=weight_bytes, kv_dtype=kv_dtype)
    context = settings.context_tokens
    return {
        "context_tokens": CONTEXT_TOKENS,
        "dtype": str(dtype).removeprefix("torch."),
        "kv_dtype": str(kv_dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "has_native_kernels": kernels is not None,
        "num_rounds": len(rounds),
        "bandwidth_gb_per_s": ceilings.bandwidth / 1e9,
        "matrix_gflop_per_s": ceilings.matrix_rate / 1e9,
        # One stream waits for memory, many for arithmetic: what the machine allows section `streams` to show at most.
        "speedup_of_floors": many * floor([context]) / floor([context] * many),
        "step_ms": {name: 1000 * statistics.median(one.seconds[name] for one in rounds) for name in ways},
        "floor_ms": {name: 1000 * statistics.median(one.floors[name] for one in rounds) for name in rounds[0].floors},
        **_medians([_ratios(one, many, prefill_flop) for one in rounds]),
    }


def _filled_backbone(
    model: Qwen3Model, num_streams: int, kernels: NativeKernels | None, kv_dtype: torch.dtype
) -> Stepper:
    """This server's engine over an arena that holds some numbers."""
    extent_tokens = extent_capacity(max(GROWTH_CONTEXTS) + 1)
    largest = StepSize(PREFILL_TOKENS, num_streams, extent_tokens)
    backbone = build_backbone(model, num_streams * extent_tokens, largest, kernels, kv_dtype)
    _fill(backbone, num_streams)
    return backbone


def _ways(plain: Qwen3Model, backbone: Stepper, many: int, device: torch.device) -> dict[str, Way]:
    return {
        "reforward": _reforward(plain, device),
        "cache": _cached(plain, device),
        "prefill": partial(backbone.step, _prefill()),
        "ours_one": partial(backbone.step, _plan(1, CONTEXT_TOKENS)),
        **{f"ours_many_{context}": partial(backbone.step, _plan(many, context)) for context in GROWTH_CONTEXTS},
    }


def _floors(
    ceilings: Ceilings, config: Qwen3Config, many: int, weight_bytes: int, kv_dtype: torch.dtype
) -> dict[str, float]:
    """The least seconds of the ways that are ours."""
    contexts = {"ours_one": [CONTEXT_TOKENS], "prefill": list(range(PREFILL_TOKENS))}
    contexts |= {f"ours_many_{context}": [context] * many for context in GROWTH_CONTEXTS}
    return {name: ceilings.floor_s(config, each, weight_bytes, kv_dtype) for name, each in contexts.items()}


def _ratios(one: Round, many: int, prefill_flop: int) -> dict[str, float]:
    """What the bars are about, in one round."""
    seconds, floors = one.seconds, one.floors
    ours_many = seconds[f"ours_many_{CONTEXT_TOKENS}"]
    shortest, longest = (f"ours_many_{GROWTH_CONTEXTS[index]}" for index in (0, -1))
    return {
        "many_over_cache": many * seconds["cache"] / ours_many,
        "many_over_reforward": many * seconds["reforward"] / ours_many,
        "many_of_floor": floors[f"ours_many_{CONTEXT_TOKENS}"] / ours_many,
        "one_over_cache": seconds["cache"] / seconds["ours_one"],
        "one_of_floor": floors["ours_one"] / seconds["ours_one"],
        "prefill_of_matrix_rate": prefill_flop / seconds["prefill"] / one.ceilings.matrix_rate,
        "growth_over_floors": (seconds[longest] / seconds[shortest]) / (floors[longest] / floors[shortest]),
    }


def _medians(ratios: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in ratios) for name in ratios[0]}


def _seconds(way: Way, device: torch.device) -> float:
    """Seconds of a way; of a fast one, the median of some."""
    durations_s: list[float] = []
    while len(durations_s) < FAST_REPEATS and (not durations_s or durations_s[0] < FAST_S):
        started_s = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations_s.append(time.perf_counter() - started_s)
    return statistics.median(durations_s)


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
