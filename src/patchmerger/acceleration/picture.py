"""The picture of an acceleration: accuracy at each step, and the speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_GREY, _RED, _BLUE = "#4d5562", "#d1495b", "#3b8ea5"
STAGES = {"plain": "plain", "started": "merged,\nnot trained", "recovered": "recovered"}


def draw_acceleration(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate`` as a PNG.

    Left: accuracy (without labels: agreement with the plain model) of the plain model, after the start and after the
    recovery. Right: how many times faster it is, measured and predicted.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.8), dpi=160, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _accuracies(left, results)
        _speeds(right, results)
        figure.savefig(path)


def _accuracies(axes: Axes, results: dict[str, Any]) -> None:
    key = "agreement" if results["metric"] == "agreement" else "accuracy"
    values = {stage: 100 * results["proof"][stage][key] for stage in STAGES}
    axes.bar(list(STAGES.values()), list(values.values()), color=[_GREY, _BLUE, _RED], width=0.6)
    for place, value in enumerate(values.values()):
        axes.annotate(f"{value:.2f}", (place, 0.5 * value), ha="center", va="center", color="white", weight="bold")
    if results["max_drop"] is not None and values["plain"] > results["max_drop"]:
        limit = values["plain"] - results["max_drop"]
        axes.axhline(limit, color=_GREY, lw=1, ls="--")
        label = f"−{results['max_drop']:g} points"
        axes.annotate(
            label, (1, limit), xycoords=("axes fraction", "data"), xytext=(0, 4), textcoords="offset points",
            ha="right", color=_GREY, fontsize=8,
        )  # fmt: skip
    axes.set_ylim(0, 1.12 * max(values.values()))
    axes.set_xlim(-0.5, 2.75)
    what = "agreement with the plain model" if key == "agreement" else results["metric"]
    axes.set_ylabel(f"{what} on {results['proof']['plain']['images']:,} held-out images, %", fontsize=8)
    axes.set_title("Accuracy" if key == "accuracy" else "Agreement", loc="left", weight="bold")


def _speeds(axes: Axes, results: dict[str, Any]) -> None:
    timing = next(t for t in results["speed"]["timings"] if t["name"] == "accelerated")
    speed, (slow, fast) = timing["speedup"], timing["ratio_quartiles"]
    values = [1.0, speed]
    axes.bar(["plain", "accelerated"], values, color=[_GREY, _RED], width=0.55)
    axes.errorbar(1, speed, yerr=[[speed - 1 / fast], [1 / slow - speed]], color="black", capsize=4, lw=1)
    predicted = results["speedup"]["predicted"]
    axes.axhline(predicted, color=_GREY, lw=1, ls="--")
    axes.annotate(
        f"{predicted:.2f}× by FLOPs", (0, predicted), xycoords=("axes fraction", "data"), xytext=(4, 4),
        textcoords="offset points", color=_GREY, fontsize=8,
    )  # fmt: skip
    axes.annotate(f"{speed:.2f}×", (1, 0.5 * speed), ha="center", va="center", color="white", weight="bold")
    axes.set_ylim(0, 1.2 * max(speed, predicted))
    axes.set_ylabel("times as fast as the plain model")
    axes.set_xlabel(results["environment"]["device_name"], fontsize=8)
    axes.set_title("Measured speed", loc="left", weight="bold")
