"""Results: bars, tables for people, a file for later."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Head and rows."""


@dataclass(frozen=True)
class Bar:
    """What a figure must reach, or must not exceed."""

    section: str
    figure: str
    limit: float
    meaning: str
    is_maximum: bool = False

    def is_missed(self, result: Result) -> bool:
        """Whether the figure is on the wrong side."""
        figure = result[self.section][self.figure]
        return bool(figure > self.limit if self.is_maximum else figure < self.limit)


def missed_bars(result: Result, bars: Sequence[Bar]) -> list[Bar]:
    """Those that the result does not reach."""
    return [bar for bar in bars if bar.is_missed(result)]


def print_tables(result: Result, bars: Sequence[Bar]) -> None:
    """Plain tables on stdout, for the sections that were measured."""
    machine = result["machine"]
    print(f"\n{machine['cpu']}, {machine['cores']} cores")
    tables = {
        "streams": _streams_table,
        "engine": _engine_table,
        "classify": _classify_table,
        "front_end": _front_end_table,
        "fairness": _fairness_table,
        "sweep": _sweep_table,
        "telemetry": _telemetry_table,
    }
    for name, table in tables.items():
        if name in result:
            _print_table(*table(result))
    _print_table(
        ("bar", "measured", "limit", ""),
        [
            (
                bar.meaning,
                f"{result[bar.section][bar.figure]:.2f}",
                f"{'at most' if bar.is_maximum else 'at least'} {bar.limit:g}",
                "missed" if bar.is_missed(result) else "reached",
            )
            for bar in bars
        ],
    )


def _streams_table(result: Result) -> Table:
    streams, num_streams = result["streams"], result["settings"]["num_streams"]
    figures = ("tokens_per_s", "latency_ms", "latency_p95_ms")
    return (
        (f"through gRPC, one token a message ({streams['dtype']}, {streams['device']})", "tokens/s", "ms", "p95 ms"),
        [
            (label, *(f"{streams[f'{side}_{figure}']:.1f}" for figure in figures))
            for label, side in (("1 stream", "one"), (f"{num_streams} streams", "many"))
        ],
    )


def _engine_table(result: Result) -> Table:
    engine, num_streams = result["engine"], result["settings"]["num_streams"]
    print(
        f"\nceilings: {engine['bandwidth_gb_per_s']:.1f} GB/s, {engine['matrix_gflop_per_s']:.0f} GFLOP/s; "
        f"native kernels: {'yes' if engine['has_native_kernels'] else 'no'}; at the floors {num_streams} streams would "
        f"give {engine['speedup_of_floors']:.1f} times the tokens of one"
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
    floors = engine["floor_ms"]
    return (
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


def _classify_table(result: Result) -> Table:
    classify = result["classify"]
    rows = [("transformers' generate", f"{classify['generate_ms']:.0f}", "1.0", "")]
    rows += [
        (
            f"Classify, {label}",
            f"{classify[f'{side}_ms']:.0f}",
            f"{classify[f'{side}_speedup']:.1f}",
            f"{classify[f'passes_per_call_{side}']:.1f}",
        )
        for label, side in (("nothing known", "cold"), ("template known", "warm"))
    ]
    texts = f"{classify['num_texts_different']} of {classify['num_texts_compared']} texts differ"
    return (f"a verdict of Gen ({classify['dtype']}; {texts})", "ms", "times", "passes"), rows


def _front_end_table(result: Result) -> Table:
    front, num_streams = result["front_end"], result["settings"]["num_streams"]
    labels = {
        "echo": ("echo_messages_per_s", f"bare grpc.aio echo, {num_streams} calls"),
        "fast_echo": ("fast_echo_messages_per_s", "the same on this server's event loop"),
        "noop": ("noop_messages_per_s", f"this server, {num_streams} calls"),
        "one_per_call": ("one_per_call_tokens_per_s", f"this server, {front['num_conversations']} calls"),
        "many": ("many_tokens_per_s", f"this server, {front['num_conversations']} conversations on one call, packed"),
        "many_unpacked": ("many_unpacked_tokens_per_s", "the same, a message for each of them"),
    }
    return (
        ("without a model, one token a message", "tokens/s", "server's us"),
        [
            (label, f"{front[figure]:.0f}", f"{front['server_cpu_us'][name]:.0f}")
            for name, (figure, label) in labels.items()
        ],
    )


def _fairness_table(result: Result) -> Table:
    fairness = result["fairness"]
    return (
        ("lag of 8 streams, ms", "p50", "p99"),
        [
            (label, f"{fairness[f'p50_{side}_ms']:.0f}", f"{fairness[f'p99_{side}_ms']:.0f}")
            for label, side in (("alone", "without"), ("beside a prompt of 4,096 tokens", "with"))
        ],
    )


def _sweep_table(result: Result) -> Table:
    return (
        ("streams", "tokens/s", "lag p50 ms", "p95", "p99", "sequences a step"),
        [
            (
                str(point["num_streams"]),
                f"{point['tokens_per_s']:.1f}",
                *(f"{point[f'lag_p{share}_ms']:.0f}" for share in (50, 95, 99)),
                f"{point['sequences_per_step']:.1f}",
            )
            for point in result["sweep"]["points"]
        ],
    )


def _telemetry_table(result: Result) -> Table:
    telemetry, num_streams = result["telemetry"], result["settings"]["num_streams"]
    return (
        (f"telemetry, {num_streams} streams", "tokens/s", "ms computed a token", "us without a model"),
        [
            (
                label,
                f"{telemetry[f'{side}_tokens_per_s']:.1f}",
                f"{telemetry[f'{side}_cpu_ms']:.2f}",
                f"{telemetry[f'noop_{side}_cpu_us']:.0f}",
            )
            for label, side in (("off", "off"), ("all on", "on"))
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
