"""`python -m tests.bench.gpu`: checks and measures the engine's steps on a GPU, prints a table, writes a result file.

For each published shape a random model is made in the device's memory. First its steps are compared with transformers'
(gpu_parity.py), then they are timed (gpu_steps.py) beside two other ways to judge the same token: transformers' own
cache, and the whole sequence again, which is what the reference implementation does (QwenLM/Qwen3Guard issue 22).
Without a GPU nothing is measured. `--rehearse` goes through all of it on the CPU with a tiny model and writes nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from guardwire_server.model.cuda_backbone import NUM_TRASH_SLOTS, CudaBackbone
from guardwire_server.model.cuda_batch import StepSize
from guardwire_server.model.cuda_forward import CudaForward, FlashAttention, flash_attention
from guardwire_server.model.cuda_graphs import CudaRecorder, Recorder
from guardwire_server.model.flash_probe import find_fault
from guardwire_server.model.ragged_attention import KvTensors, kv_bytes_per_token
from guardwire_server.model.stream_backend import TorchStreamBackend
from tests.bench.gpu_models import REHEARSAL, SHAPES, Shape, random_guard
from tests.bench.gpu_parity import NUM_STEPS, is_reached, measure_parity
from tests.bench.gpu_steps import Ceilings, Load, Timer, measure_ceilings, transformers_ways
from tests.bench.progress import say
from tests.model.cuda_stepping import ReplayRecorder
from tests.model.flash_reference import reference_flash

RESULTS = Path(__file__).parent / "results"
CONTEXTS = (512, 2048)
LOADS = (
    *(Load(num_streams, context) for context in CONTEXTS for num_streams in (1, 16, 64, 256, 1024)),
    Load(1, 0, 512),
    Load(1, 0, 4096),
)
UNRECORDED = Load(16, 512)
LARGEST = StepSize(max_tokens=4096, max_seqs=1024, max_keys=8192)
ARENA_SHARE = 0.8
"""Of the memory that is free beside the model."""

COLUMNS = {
    "step_ms": ("ms a step", "{:.2f}"),
    "floor_ms": ("ms at least", "{:.2f}"),
    "of_floor": ("of that", "{:.0%}"),
    "tokens_per_s": ("tokens/s", "{:,.0f}"),
}
"""Figures of a load, each with its head and its format."""


@dataclass(frozen=True)
class Place:
    """Where and how much is measured."""

    device: torch.device
    loads: Sequence[Load]
    contexts: Sequence[int]
    largest: StepSize
    num_repeats: int
    copy_bytes: int
    matrix_size: int
    num_parity_steps: int = NUM_STEPS
    attention: FlashAttention | None = None

    def recorder(self) -> Recorder:
        """A new one for every model."""
        return CudaRecorder(self.device) if self.device.type == "cuda" else ReplayRecorder()

    def num_free_slots(self, shape: Shape) -> int:
        """Slots that an arena can have now."""
        if self.device.type != "cuda":
            return max(load.num_slots for load in self.loads)
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        return int(free_bytes * ARENA_SHARE / kv_bytes_per_token(shape.config(), torch.bfloat16))


GPU = Place(torch.device("cuda", 0), LOADS, CONTEXTS, LARGEST, num_repeats=30, copy_bytes=2**32, matrix_size=8192)
CPU = Place(
    torch.device("cpu"),
    (Load(1, 20), Load(3, 20), Load(1, 0, 40)),
    (20,),
    StepSize(max_tokens=64, max_seqs=4, max_keys=64),
    num_repeats=1,
    copy_bytes=2**20,
    matrix_size=64,
    num_parity_steps=6,
    attention=reference_flash,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when the steps compute what transformers computes, or when there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__.splitlines()[0])
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="which models (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result file goes")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU: figures mean nothing")
    options = parser.parse_args(arguments)
    if options.rehearse:
        return 0 if _report([_measure_shape(REHEARSAL, CPU)]) else 1
    shapes = [shape for shape in SHAPES if shape.name in options.shapes]
    if not torch.cuda.is_available():
        for shape in shapes:
            _print_table(shape.name, [_row({"label": load.label}) for load in LOADS])
        print("\nno GPU here: nothing was measured, the table is empty")
        return 0
    results = [_measure_shape(shape, GPU) for shape in shapes]
    _write({"device": _describe_device(GPU.device), "shapes": results}, options.results)
    return 0 if _report(results) else 1


def _measure_shape(shape: Shape, place: Place) -> dict[str, Any]:
    """Everything about one model. Each part frees what it took."""
    fault = find_fault(
        place.attention or flash_attention(),
        place.device,
        torch.bfloat16,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )
    if fault:
        return {"name": shape.name, "fault": fault}
    parity = measure_parity(shape, place.device, place.recorder(), place.attention, place.num_parity_steps)
    _free(place.device)
    timer = Timer(place.device, place.num_repeats)
    ceilings = measure_ceilings(timer, place.device, place.copy_bytes, place.matrix_size)
    say(f"{shape.name}: timing transformers")
    model = random_guard(shape, place.device, torch.bfloat16).model
    ways = transformers_ways(model, place.contexts, timer)
    del model
    _free(place.device)
    steps = _measure_steps(shape, place, timer, ceilings)
    _free(place.device)
    return {
        "name": shape.name,
        "fault": None,
        "parity": parity,
        "is_parity_reached": is_reached(parity),
        "bandwidth_gb_per_s": ceilings.bandwidth / 1e9,
        "matrix_tflop_per_s": ceilings.matrix_rate / 1e12,
        "transformers_ms": {name: 1000 * seconds for name, seconds in ways.items()},
        "steps": steps,
    }


def _measure_steps(shape: Shape, place: Place, timer: Timer, ceilings: Ceilings) -> list[dict[str, Any]]:
    """A row for each load; one that the memory does not hold has no times."""
    guard = random_guard(shape, place.device, torch.bfloat16)
    config, num_free = guard.model.config, place.num_free_slots(shape)
    loads = [load for load in place.loads if load.num_slots <= num_free]
    num_slots = max((load.num_slots for load in loads), default=0)
    forward = CudaForward(guard.model, place.attention)
    kv = KvTensors(config, num_slots + NUM_TRASH_SLOTS, place.device, torch.bfloat16)
    for tensor in (kv.keys, kv.values):
        tensor.normal_()
    rows: list[dict[str, Any]] = []
    if UNRECORDED in loads:
        say(f"{shape.name}: timing a step without a recording")
        backend, plan = TorchStreamBackend(guard, CudaBackbone(forward, kv, place.largest, None)), UNRECORDED.plan()
        step_s = timer.each_s(lambda: backend.step(plan))
        rows.append({"label": f"{UNRECORDED.label}, not recorded", "step_ms": 1000 * step_s})
    say(f"{shape.name}: recording")
    recorded = TorchStreamBackend(guard, CudaBackbone(forward, kv, place.largest, place.recorder()))
    for load in place.loads:
        floor_s = ceilings.floor_s(load, config, torch.bfloat16)
        row: dict[str, Any] = {"label": load.label, "floor_ms": 1000 * floor_s}
        if load in loads:
            plan = load.plan()
            step_s = timer.each_s(lambda plan=plan: recorded.step(plan))  # type: ignore[misc]
            row |= {"step_ms": 1000 * step_s, "of_floor": floor_s / step_s, "tokens_per_s": plan.num_tokens / step_s}
            say(f"{shape.name}: {load.label}: {row['step_ms']:.2f} ms")
        rows.append(row)
    return rows


def _report(results: Sequence[dict[str, Any]]) -> bool:
    """Prints everything; returns whether all is as it must be."""
    for result in results:
        if result["fault"]:
            print(f"\n{result['name']}: nothing was measured: {result['fault']}")
            continue
        parity = result["parity"]
        print(
            f"\n{result['name']}: {result['bandwidth_gb_per_s']:.0f} GB/s, {result['matrix_tflop_per_s']:.1f} TFLOP/s; "
            f"distance from transformers' float32: float32 {parity['float32']:.1e}, bfloat16 {parity['bfloat16']:.1e} "
            f"(transformers' own {parity['bfloat16_transformers']:.1e}): "
            f"{'within' if result['is_parity_reached'] else 'NOT within'} the tolerances"
        )
        rows = [_row(row) for row in result["steps"]]
        rows += [_row({"label": name, "step_ms": value}) for name, value in result["transformers_ms"].items()]
        _print_table(f"{result['name']}, bfloat16", rows)
    return all(not result["fault"] and result["is_parity_reached"] for result in results)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    """A cell for each column; empty where there is no figure."""
    cells = (text.format(row[name]) if name in row else "" for name, (_, text) in COLUMNS.items())
    return row["label"], *cells


def _print_table(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """The first column to the left, the others to the right."""
    head = (title, *(name for name, _ in COLUMNS.values()))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print()
    for row in (head, tuple("-" * width for width in widths), *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(len(first)), *others)).rstrip())


def _describe_device(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _write(result: dict[str, Any], folder: Path) -> None:
    """One file for each kind of GPU; a new run replaces the last one's."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(result["device"]["name"]).lower()).strip("-")
    file = folder / f"gpu-{name}.json"
    file.write_text(json.dumps(_rounded(result), indent=2) + "\n")
    say(f"wrote {file.name}")


def _rounded(value: object) -> object:
    """Figures with four significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
