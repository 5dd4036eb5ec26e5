"""The picture of ``patchmerger transfer``: the accuracy of each stage, and the differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

FILE = "transfer.png"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger transfer`` as a PNG.

    Left: the metric of each stage. Right: the paired difference to the baseline in points, with its 95% interval.
    """
    variants, baseline, seeds = results["variants"], results["baseline"], results["settings"]["seeds"]
    stages = list(variants[baseline]["stages"])
    with style.picture(path, columns=2, note=_note(results)) as (figure, (left, right)):
        colours, markers = style.variant_colours(variants), style.variant_markers(variants)
        for number, (name, variant) in enumerate(variants.items()):
            looks: dict[str, Any] = {"fmt": markers[name], "ms": 7, "capsize": 3, "lw": 1.2, "color": colours[name]}
            _stages(left, variant["stages"], stages, _shift(number, len(variants)), looks)
            if name != baseline:
                _differences(right, variant["stages"], stages, _shift(number - 1, len(variants) - 1), looks)
        left.set_ylim(bottom=0)
        left.set_ylabel("test accuracy, %")
        style.head(left, "Each stage")
        right.axhline(0, color=style.GREY, lw=1, ls="--")
        right.set_ylabel("points")
        style.head(right, f"Minus {baseline}, paired, 95% interval{', one seed' if seeds == 1 else ''}")
        for axes in (left, right):
            axes.set_xticks(range(len(stages)), stages, fontsize=9)
            axes.set_xlim(-0.6, len(stages) - 0.4)
        handles = [Line2D([], [], color=colours[name], marker=markers[name], ms=8, lw=0) for name in variants]
        labels = [f"{name}, {numbers.gflops_text(variant['flops'])} GFLOPs" for name, variant in variants.items()]
        style.shared_legend(figure, handles, labels, title=numbers.run_text(results))


def _note(results: Mapping[str, Any]) -> str:
    seeds = results["settings"]["seeds"]
    tuned = numbers.counted(results["settings"]["finetuning"]["training"]["epochs"], "epoch")
    if seeds > 1:
        return f"Fine-tuned for {tuned}. Left: mean ± standard deviation of {seeds} seeds. Right: over the seeds."
    return (
        f"Fine-tuned for {tuned}. Intervals are over the test images (few-shot: over the draws) of one training each, "
        "and leave out training noise."
    )


def _stages(axes: Axes, found: dict[str, Any], stages: list[str], shift: float, looks: dict[str, Any]) -> None:
    sds = [100 * (found[stage]["metric_sd"] or 0) for stage in stages]
    places = [place + shift for place in range(len(stages))]
    means = [100 * found[stage]["metric_mean"] for stage in stages]
    axes.errorbar(places, means, yerr=sds if any(sds) else None, **looks)


def _differences(axes: Axes, found: dict[str, Any], stages: list[str], shift: float, looks: dict[str, Any]) -> None:
    for place, stage in enumerate(stages):
        difference = found[stage]["difference"]
        if difference is not None:
            mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
            axes.errorbar(place + shift, mean, yerr=[[mean - low], [high - mean]], **looks)


def _shift(number: int, count: int) -> float:
    return 0.16 * (number - (count - 1) / 2)
