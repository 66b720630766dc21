"""Results: bars, tables for people, a file for later."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """What a figure must reach."""

    section: str
    figure: str
    minimum: float
    meaning: str


def missed_bars(result: Result, bars: Sequence[Bar]) -> list[Bar]:
    """Those that the result does not reach."""
    return [bar for bar in bars if result[bar.section][bar.figure] < bar.minimum]


def print_tables(result: Result, bars: Sequence[Bar]) -> None:
    """Plain tables on stdout."""
    machine, streams, engine = result["machine"], result["streams"], result["engine"]
    num_streams = result["settings"]["num_streams"]
    print(f"\n{machine['cpu']}, {machine['cores']} cores, {streams['device']}, {streams['dtype']}")
    figures = ("tokens_per_s", "latency_ms", "latency_p95_ms")
    _print_table(
        ("through gRPC, one token a message", "tokens/s", "ms a token", "p95 ms"),
        [
            (label, *(f"{streams[f'{side}_{figure}']:.1f}" for figure in figures))
            for label, side in (("1 stream", "one"), (f"{num_streams} streams", "many"))
        ],
    )
    labels = {
        "reforward": "whole sequence again, 1 stream",
        "cache": "transformers' cache, 1 stream",
        "ours_one": "this engine, 1 stream",
        **{
            name: f"this engine, {num_streams} streams, context {name.rpartition('_')[2]}"
            for name in engine["step_ms"]
            if name.startswith("ours_many")
        },
        "prefill": "this engine, a prompt of that length",
    }
    print(
        f"\nceilings: {engine['bandwidth_gb_per_s']:.1f} GB/s, {engine['matrix_gflop_per_s']:.0f} GFLOP/s; "
        f"native kernels: {'yes' if engine['has_native_kernels'] else 'no'}; at the floors {num_streams} streams would "
        f"give {engine['speedup_of_floors']:.1f} times the tokens of one"
    )
    floors = engine["floor_ms"]
    _print_table(
        (f"engine alone, context {engine['context_tokens']}", "ms a step", "floor", "of floor"),
        [
            (
                label,
                f"{engine['step_ms'][name]:.1f}",
                f"{floors[name]:.1f}" if name in floors else "",
                f"{100 * floors[name] / engine['step_ms'][name]:.0f} %" if name in floors else "",
            )
            for name, label in labels.items()
        ],
    )
    _print_table(
        ("bar", "measured", "at least", ""),
        [
            (
                bar.meaning,
                f"{result[bar.section][bar.figure]:.2f}",
                f"{bar.minimum:g}",
                "missed" if bar in missed_bars(result, bars) else "reached",
            )
            for bar in bars
        ],
    )


def write_result(result: Result, folder: Path) -> Path:
    """Writes the result file; its name tells when, in UTC."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{result['settings']['name']}.json"
    file.write_text(json.dumps(_rounded(result), indent=2) + "\n")
    return file


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print()
    for row in (head, ["-" * width for width in widths], *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(len(first)), *others)).rstrip())


def _rounded(value: object) -> object:
    """Figures with four significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
