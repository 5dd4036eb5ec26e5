"""The picture of ``patchmerger accelerate``: accuracy before and after, and the measured speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from patchmerger.reducers.names import placement_in_words
from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style
from patchmerger.runs.statistics import TRAINING_NOISE

FILE = "acceleration.png"
_NOT_TRAINED = "#e0945a"  # the colour of merged, lighter
STAGES = {"plain": "plain", "initialised": "merged, not trained", "recovered": "accelerated"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate`` as a PNG.

    Left: accuracy (without labels: agreement with the plain model) of the plain model, with the queries initialised and
    after the recovery. Right: how many times as fast it is, measured and predicted.
    """
    uncertain = numbers.timings_of(results["speed"])["accelerated"]["uncertain"]
    note = (
        f"Speed: median of the paired ratios of interleaved rounds, bar: their quartiles"
        f"{f', uncertain ({uncertain})' if uncertain else ''}; {results['environment']['device_name']}.\n"
        f"One recovery: {TRAINING_NOISE.split(' (')[0]} is left out."
    )
    with style.picture(path, columns=2, note=note, title=title_text(results)) as (_, (left, right)):
        _accuracies(left, results)
        _speeds(right, results)


def title_text(results: Mapping[str, Any]) -> str:
    """What was accelerated, on what, and how."""
    settings, place = results["settings"], results["placement"]
    placement = placement_in_words(place["reducer"], place["num_tokens"], place["after"])
    return f"{numbers.model_name(settings['model'])} on {numbers.source_text(settings['data'])}: {placement}"


def _bars(axes: Axes, names: list[str], values: list[float], texts: list[str], colours: list[str]) -> None:
    """Bars from 0, each with its number in it."""
    axes.set_axisbelow(True)
    axes.bar(names, values, color=colours, width=0.6)
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(text, (place, 0.5 * value), ha="center", va="center", color="white", weight="bold")


def _limit(axes: Axes, height: float, label: str) -> None:
    """A dashed line, named at its right end."""
    axes.set_xlim(right=axes.get_xlim()[1] + 0.55)
    axes.axhline(height, color=style.GREY, lw=1, ls="--")
    axes.annotate(
        label, (1, height), xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points", ha="right",
        va="top", color=style.GREY, fontsize=8,
    )  # fmt: skip


def _accuracies(axes: Axes, results: Mapping[str, Any]) -> None:
    key = "agreement" if results["metric"] == "agreement" else "accuracy"
    values = [100 * results["evaluation"][stage][key] for stage in STAGES]
    plain, merged = style.variant_colours(["plain", "merged"]).values()
    names, texts = [name.replace(", ", ",\n") for name in STAGES.values()], [f"{value:.2f}" for value in values]
    _bars(axes, names, values, texts, [plain, _NOT_TRAINED, merged])
    if results["max_drop"] is not None and values[0] > results["max_drop"]:
        _limit(axes, values[0] - results["max_drop"], f"−{results['max_drop']:g} points")
    axes.set_ylim(0, 1.05 * max(values))
    what = "agreement with plain" if key == "agreement" else results["metric"]
    axes.set_ylabel(f"{what}, {results['evaluation']['plain']['images']:,} held-out images, %", fontsize=9)
    style.head(axes, "Accuracy" if key == "accuracy" else "Agreement")


def _speeds(axes: Axes, results: Mapping[str, Any]) -> None:
    timing = numbers.timings_of(results["speed"])["accelerated"]
    speed, predicted = timing["speedup"], results["speedup"]["predicted"]
    colours = style.variant_colours(["plain", "merged"])
    _bars(axes, ["plain", "accelerated"], [1.0, speed], ["1", numbers.speed_text(timing)], list(colours.values()))
    axes.errorbar(1, speed, yerr=style.error_bar(timing), color="black", capsize=4, lw=1)
    _limit(axes, predicted, f"{predicted:.2f} by FLOPs")
    axes.set_ylim(0, 1.15 * max(speed, predicted))
    axes.set_ylabel("inference, times as fast as plain")
    style.head(axes, "Measured speed")
