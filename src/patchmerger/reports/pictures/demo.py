"""The picture of ``patchmerger demo``: accuracy against measured speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

FILE = "demo.png"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy against measured speed as a PNG."""
    colours, markers = style.variant_colours(results["models"]), style.variant_markers(results["models"])
    timing = numbers.timings_of(results["speed"])["accelerated"]
    speeds = {"plain": 1.0, "merged": results["speedup"]["measured"]}
    bars = {"plain": None, "merged": style.error_bar(timing)}
    seeds = len(results["models"]["plain"]["accuracies"])
    note = (
        f"Handwritten digits (scikit-learn), {numbers.counted(seeds, 'split')}. Vertical bars: 95% interval of the "
        f"accuracy on {results['models']['plain']['images']} test images; horizontal: quartiles of the measured speed. "
        "The axis of accuracy does not begin at 0."
    )
    with style.picture(path, columns=1, note=note) as (_, (axes,)):
        for name, found in results["models"].items():
            value, (low, high) = 100 * found["accuracy"], (100 * end for end in found["interval"])
            axes.errorbar(
                speeds[name], value, yerr=[[value - low], [high - value]], xerr=bars[name], color=colours[name],
                marker=markers[name], ms=10, capsize=4, lw=1.2,
            )  # fmt: skip
            right = name == "plain"  # the other stays clear of the line that FLOPs predict, and is below the first
            axes.annotate(
                f"{name}: {value:.1f}%", (speeds[name], value), xytext=(9, 9) if right else (-9, -18),
                textcoords="offset points", ha="left" if right else "right", color=colours[name], weight="bold",
            )  # fmt: skip
        predicted = results["speedup"]["predicted"]
        axes.axvline(predicted, color=style.GREY, lw=1, ls=":")
        axes.annotate(
            f"{predicted:.2f} by FLOPs", (predicted, 0.02), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", color=style.GREY, fontsize=8,
        )  # fmt: skip
        axes.set_xlim(0.9, 1.15 * max(predicted, speeds["merged"]))
        axes.margins(y=0.2)
        axes.set_xlabel("times as fast as the plain model, inference")
        axes.set_ylabel("accuracy on test images, %")
        style.head(axes, "A trained ViT, made faster")
