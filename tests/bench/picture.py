"""`python -m tests.bench.picture RESULT.json OUT.svg`: draws section `sweep` of a result file.

Left the tokens per second against the number of streams, right the verdict lag. The lines across the left half are what
one stream after another gets from the ways that section `engine` compares with. The background stays clear and every
colour has a contrast of more than 3.5 to white and to black, so that one file serves on both.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

INK = "#7a7f87"
OURS = "#2f7fe0"
WAYS = {"cache": ("plain key-value cache", "#c8701e"), "reforward": ("the reference", "#d6455d")}
PERCENTILES = {"p50": "#2f7fe0", "p95": "#8f6ad8", "p99": "#d6455d"}
SETTINGS: dict[Any, Any] = {
    "font.size": 11,
    "svg.fonttype": "none",
    "svg.hashsalt": "guardwire",  # or every drawing of the same figures would differ
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
}


def main() -> int:
    """Returns 0; ends the program with 2 when the file lacks what is drawn."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.picture", description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="a result file with the sections machine, sweep and engine")
    parser.add_argument("out", type=Path, help="the SVG to write")
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    if missing := {"machine", "sweep", "engine"} - result.keys():
        parser.error(f"{options.result.name} has no section {', '.join(sorted(missing))}")
    draw(result, options.out)
    return 0


def draw(result: Mapping[str, Any], out: Path) -> None:
    """Writes the picture."""
    machine, sweep = result["machine"], result["sweep"]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(11, 4.4), layout=ConstrainedLayoutEngine(wspace=0.06))
        left, right = figure.subplots(1, 2)
        _draw_rates(left, sweep, result["engine"])
        _draw_lags(right, sweep["points"])
        for axes in (left, right):
            _label_streams(axes, sweep["points"])
        where = f"{machine['cpu']}, {machine['cores']} cores, {sweep['device']}, {sweep['dtype']}"
        figure.supxlabel(where, fontsize=9)
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _draw_rates(axes: Axes, sweep: Mapping[str, Any], engine: Mapping[str, Any]) -> None:
    """In a logarithmic scale: the ways lie a hundredfold apart. Contexts are told, since they are not the same."""
    numbers, rates = ([point[name] for point in sweep["points"]] for name in ("num_streams", "tokens_per_s"))
    axes.set_yscale("log")
    axes.plot(numbers, rates, color=OURS, marker="o", linewidth=2)
    for number, rate in zip(numbers, rates, strict=True):
        _write(axes, f"{rate:.3g}", (number, rate), OURS, above=True, align="center")
    label = f"Guardwire, context {sweep['context_tokens']}"
    _write(axes, label, (numbers[0], rates[0]), OURS, above=False, align="left")
    for name, (way, colour) in WAYS.items():
        rate = 1000 / engine["step_ms"][name]
        axes.axhline(rate, color=colour, linewidth=1.5, linestyle="--")
        label = f"{way}, one stream, context {engine['context_tokens']}: {rate:.2g}"
        _write(axes, label, (numbers[-1], rate), colour, above=False, align="right")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom / 1.8, 1.4 * top)  # room for the lowest label and the highest figure
    axes.set_title("Tokens per second")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _write(
    axes: Axes,
    text: str,
    point: tuple[float, float],
    colour: str,
    *,
    above: bool,
    align: Literal["left", "center", "right"],
) -> None:
    """Puts text beside a point."""
    axes.annotate(
        text,
        point,
        (0, 6 if above else -6),
        textcoords="offset points",
        horizontalalignment=align,
        verticalalignment="bottom" if above else "top",
        color=colour,
    )


def _draw_lags(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """From zero, so that lengths compare."""
    numbers = [point["num_streams"] for point in points]
    for name, colour in PERCENTILES.items():
        lags_ms = [point[f"lag_{name}_ms"] for point in points]
        axes.plot(numbers, lags_ms, color=colour, marker="o", linewidth=2, label=name)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor="linecolor", reverse=True)
    axes.set_title("From a token's push to its verdict, ms")


def _label_streams(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([point["num_streams"] for point in points]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("streams at once")
    axes.grid(visible=True, axis="y")


if __name__ == "__main__":
    sys.exit(main())
