"""What ``patchmerger compare`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from rich import box
from rich.console import Console
from rich.table import Table

from patchmerger.reports.numbers import count_text, difference_text, shown_text

PICTURE_FILE = "comparison.png"


def report_comparison(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger compare`` into its folder, and print the table."""
    draw_comparison(results, Path(results["folder"]) / PICTURE_FILE)
    show_comparison(results)


def show_comparison(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger compare`` and what it means."""
    console = Console()
    console.width = max(console.width, 134)  # a narrower terminal wraps, but no number is cut
    metric, baseline = results["metric"], results["baseline"]
    seeds = results["settings"]["seeds"]
    title = f"{results['settings']['data']['source']}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("variant", no_wrap=True)
    for column in (
        "tokens", "GFLOPs", "params", f"{metric}\n%", f"− {baseline}, points\n[95% interval]", "trained\ns",
        "images/s", "speed-up\n(predicted)", "speed-up\nin training",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    speed = {mode: {t["name"]: t for t in results["speed"][mode]["timings"]} for mode in ("inference", "training")}
    for name, v in results["variants"].items():
        spread = "" if v["metric_sd"] is None else f" ± {100 * v['metric_sd']:.2f}"
        inference, training = speed["inference"][name], speed["training"][name]
        table.add_row(
            name,
            f"{v['tokens_in']}→{v['tokens_out']}" if v["mergers"] else str(v["tokens_in"]),
            f"{v['flops'] / 1e9:.3g}",
            count_text(v["params"]),
            f"{100 * v['metric_mean']:.2f}{spread}",
            difference_text(v["difference"]),
            f"{v['train_seconds']:.0f}",
            f"{inference['images_per_second']:,.0f}",
            f"{inference['speedup']:.2f} ({1 / v['flops_ratio']:.2f})",
            f"{training['speedup']:.2f}",
        )
    console.print(table)
    for name, v in results["variants"].items():
        if v["difference"] is not None:
            paired = f"paired over {v['difference']['n']:,} {v['difference']['over']}"
            console.print(f"{name} against {baseline}: {shown_text(v['difference'])} ({paired}).")
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)


COLOURS = {"plain": "#4d5562", "merged": "#d1495b", "paper": "#8d5fbf", "average": "#3b8ea5", "shallow": "#c79a2d"}
_FURTHER = ["#2f7d4f", "#7a4b2a", "#1f5fa8", "#b0408f"]


def draw_comparison(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger compare`` as a PNG.

    Left: the metric against the measured inference throughput; bars show the standard deviation over seeds.
    Right: the metric on the validation images over the epochs, the mean over seeds.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = colours_of(results["variants"])
        _accuracy_against_speed(left, results, colours)
        _training_curves(right, results, colours)
        figure.savefig(path)


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each variant; those that are ready-made always have the same."""
    further = cycle(_FURTHER)
    return {name: COLOURS.get(name) or next(further) for name in names}


def _accuracy_against_speed(axes: Axes, results: dict[str, Any], colours: dict[str, str]) -> None:
    speeds = {t["name"]: t["images_per_second"] for t in results["speed"]["inference"]["timings"]}
    points = {name: (speeds[name], 100 * variant["metric_mean"]) for name, variant in results["variants"].items()}
    for name, point in points.items():
        spread = 100 * (results["variants"][name]["metric_sd"] or 0)
        axes.errorbar(*point, yerr=spread or None, fmt="o", ms=9, capsize=4, color=colours[name])
    axes.margins(x=0.3, y=0.25)
    environment = results["environment"]
    axes.set_xlabel(f"inference, images/s ({environment['device_name']})")
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    _name_points(axes, points, colours)
    seeds = results["settings"]["seeds"]
    axes.set_ylabel(f"test {results['metric']}, %" + (f" (mean ± sd of {seeds} seeds)" if seeds > 1 else ""))
    axes.set_title("Accuracy against measured speed", loc="left", weight="bold")
    axes.grid(alpha=0.25)


def _name_points(axes: Axes, points: dict[str, tuple[float, float]], colours: dict[str, str]) -> None:
    """Write each name beside its point, and above the names beside and below it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    beside = axes.transData + ScaledTranslation(9 / 72, 7 / 72, axes.figure.dpi_scale_trans)
    written: list[tuple[float, float]] = []
    for name, (x, y) in sorted(points.items(), key=lambda point: point[1][1]):
        below = [there for at, there in written if abs(at - x) < 0.3 * (right - left)]
        y = max([y, *(there + 0.055 * (top - bottom) for there in below)])
        written.append((x, y))
        axes.text(x, y, name, transform=beside, color=colours[name], weight="bold")


def _training_curves(axes: Axes, results: dict[str, Any], colours: dict[str, str]) -> None:
    drawn = False
    for name, variant in results["variants"].items():
        curves = [[100 * row["val_metric"] for row in run] for run in variant["history"]]
        epochs = [row["epoch"] for row in variant["history"][0]]
        if not epochs:
            continue
        drawn = True
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        axes.plot(epochs, mean, color=colours[name], label=name, lw=2)
        if len(curves) > 1:
            low, high = ([pick(values) for values in zip(*curves, strict=True)] for pick in (min, max))
            axes.fill_between(epochs, low, high, color=colours[name], alpha=0.15, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {results['metric']}, %")
    seeds = len(next(iter(results["variants"].values()))["history"])
    axes.set_title(f"Training curves, {seeds} seed{'s' if seeds > 1 else ''}", loc="left", weight="bold")
    axes.grid(alpha=0.25)
    if drawn:
        axes.legend(frameon=False, loc="lower right")
