"""The picture of ``patchmerger compare``: accuracy against measured speed, and curves of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from patchmerger.reports.parts import charts, numbers
from patchmerger.reports.pictures import style

FILE = "comparison.png"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger compare`` as a PNG.

    Left: the metric on the test images against the measured speed in inference. Right: the metric on the validation
    images over the epochs.
    """
    seeds, variants = results["settings"]["seeds"], results["variants"]
    rounds = len(results["speed"]["inference"]["timings"][0]["round_seconds"])
    shown = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    note = (
        f"Left: {shown}; speed: median of the paired ratios of {rounds} interleaved rounds, bars: their "
        "quartiles, hollow: uncertain.\n"
        + (f"Right: mean, and a band from the lowest to the highest of {seeds} seeds. " if seeds > 1 else "")
        + f"Vertical axes do not begin at 0. Measured on {results['environment']['device_name']}."
    )
    with style.picture(path, columns=2, note=note) as (figure, panels):
        colours, markers = style.variant_colours(variants), style.variant_markers(variants)
        _accuracy_against_speed(panels[0], results, colours, markers)
        _training_curves(panels[1], results, colours, markers)
        handles = [Line2D([], [], color=colours[name], marker=markers[name], lw=2, ms=8) for name in variants]
        style.shared_legend(figure, handles, list(variants), title=numbers.run_text(results))


def _accuracy_against_speed(
    axes: Axes, results: Mapping[str, Any], colours: dict[str, str], markers: dict[str, str]
) -> None:
    timings = numbers.timings_of(results["speed"]["inference"])
    for name, variant in results["variants"].items():
        timing, sd = timings[name], 100 * (variant["metric_sd"] or 0)
        axes.errorbar(
            timing["speedup"], 100 * variant["metric_mean"], yerr=sd or None,
            xerr=None if name == results["baseline"] else style.error_bar(timing),
            fmt=markers[name], ms=12 if markers[name] == "*" else 8, capsize=3, lw=1.2, color=colours[name],
            mfc="white" if timing["uncertain"] else colours[name],
        )  # fmt: skip
    axes.margins(x=0.12, y=0.15)
    style.limit_percent(axes)
    axes.set_xlabel(f"inference, times as fast as {results['baseline']}")
    axes.set_ylabel(f"test {results['metric']}, %")
    style.head(axes, "Accuracy against measured speed")


def _training_curves(axes: Axes, results: Mapping[str, Any], colours: dict[str, str], markers: dict[str, str]) -> None:
    for name, variant in results["variants"].items():
        curve = charts.curve(name, variant["history"])
        if curve is None:
            continue
        every = max(1, len(curve.epochs) // 8)
        looks: dict[str, Any] = {"color": colours[name], "marker": markers[name], "markevery": every}
        axes.plot(curve.epochs, curve.values, lw=1.8, ms=5, **looks)
        if len(variant["history"]) > 1:
            axes.fill_between(curve.epochs, curve.lowest, curve.highest, color=colours[name], alpha=0.1, lw=0)
    if not axes.lines:
        axes.text(0.5, 0.5, "no validation images", transform=axes.transAxes, ha="center", color=style.GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {results['metric']}, %")
    style.head(axes, "Training curves")
