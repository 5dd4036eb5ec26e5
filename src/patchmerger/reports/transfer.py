"""The picture of a transfer study: the metric of each stage, and the difference to the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchmerger.reports.comparison import colours_of


def draw_transfer(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger transfer`` as a PNG.

    Left: the metric of each stage; bars show the standard deviation over seeds. Right: the paired difference to the
    baseline in points, with its 95% interval.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 4.2), dpi=160, layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = colours_of(results["variants"])
        _stages(left, results, colours)
        _differences(right, results, colours)
        figure.savefig(path)


def _stages(axes: Axes, results: dict[str, Any], colours: dict[str, str]) -> None:
    names = list(results["variants"])
    stages = list(results["variants"][names[0]]["stages"])
    for number, name in enumerate(names):
        found = results["variants"][name]["stages"]
        x = [place + _shift(number, len(names)) for place in range(len(stages))]
        y = [100 * found[stage]["metric_mean"] for stage in stages]
        spread = [100 * (found[stage]["metric_sd"] or 0) for stage in stages]
        axes.errorbar(
            x, y, yerr=spread if any(spread) else None, fmt="o", ms=7, capsize=3, color=colours[name],
            label=f"{name}, {results['variants'][name]['flops'] / 1e9:.3g} GFLOPs",
        )  # fmt: skip
    axes.set_xticks(range(len(stages)), stages)
    axes.set_ylabel("test accuracy, %")
    seeds = results["settings"]["seeds"]
    axes.set_title("Each stage" + (f" (mean ± sd of {seeds} seeds)" if seeds > 1 else ""), loc="left", weight="bold")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="best")


def _differences(axes: Axes, results: dict[str, Any], colours: dict[str, str]) -> None:
    baseline = results["baseline"]
    names = [name for name in results["variants"] if name != baseline]
    stages = list(results["variants"][baseline]["stages"])
    for number, name in enumerate(names):
        for place, stage in enumerate(stages):
            difference = results["variants"][name]["stages"][stage]["difference"]
            if difference is None:
                continue
            mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
            axes.errorbar(
                place + _shift(number, len(names)), mean, yerr=[[mean - low], [high - mean]], fmt="o", ms=7, capsize=3,
                color=colours[name], label=name if place == 0 else None,
            )  # fmt: skip
    axes.axhline(0, color=colours[baseline], lw=1, ls="--")
    axes.set_xticks(range(len(stages)), stages)
    axes.set_ylabel("points")
    axes.set_title(f"Minus {baseline}, paired, with 95% interval", loc="left", weight="bold")
    axes.grid(alpha=0.25)
    if len(names) > 1:
        axes.legend(frameon=False, loc="best")


def _shift(number: int, count: int) -> float:
    return 0.16 * (number - (count - 1) / 2)
