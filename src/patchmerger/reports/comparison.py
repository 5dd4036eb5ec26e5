"""The table and the picture of ``patchmerger compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.markup import escape

from patchmerger.reports.numbers import (
    count_text,
    counted,
    difference_text,
    interval_heading,
    left_out_text,
    mean_text,
    settings_text,
    shown_text,
    speed_text,
    uncertain_text,
)
from patchmerger.reports.style import (
    GREY,
    head,
    limit_percent,
    picture,
    shared_legend,
    speed_bars,
    variant_colours,
    variant_markers,
)
from patchmerger.reports.tables import new_table, print_notes, print_table, report_console

PICTURE_FILE = "comparison.png"


def report_comparison(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger compare`` into its folder, and print the table."""
    draw_comparison(results, Path(results["folder"]) / PICTURE_FILE)
    show_comparison(results)


def show_comparison(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger compare`` and what it means."""
    console = report_console()
    metric, baseline = results["metric"], results["baseline"]
    differences = [variant["difference"] for variant in results["variants"].values()]
    title = f"{results['settings']['data']['source']}, {counted(results['settings']['seeds'], 'seed')}"
    columns = ("tokens", "GFLOPs", "params", f"{metric}\n%", interval_heading(baseline, differences), "trained\ns",
               "images/s", "speed-up\n(predicted)", "speed-up\nin training")  # fmt: skip
    table = new_table(["variant"], columns, title=title)
    speed = {mode: {t["name"]: t for t in results["speed"][mode]["timings"]} for mode in ("inference", "training")}
    for name, v in results["variants"].items():
        inference, training = speed["inference"][name], speed["training"][name]
        table.add_row(
            escape(name),
            f"{v['tokens_in']}→{v['tokens_out']}" if v["mergers"] else str(v["tokens_in"]),
            f"{v['flops'] / 1e9:.3g}",
            count_text(v["params"]),
            mean_text(v),
            difference_text(v["difference"]),
            f"{v['train_seconds']:.0f}",
            f"{inference['images_per_second']:,.0f}",
            f"{speed_text(inference)} ({1 / v['flops_ratio']:.2f})",
            speed_text(training),
        )
    print_table(console, table)
    for name, v in results["variants"].items():
        if v["difference"] is not None:
            paired = f"paired over {v['difference']['n']:,} {v['difference']['over']}"
            console.print(f"{escape(name)} against {baseline}: {shown_text(v['difference'])} ({paired}).")
    uncertain = uncertain_text(
        (f"{name} in {mode}", timing) for mode in speed for name, timing in speed[mode].items() if name != baseline
    )
    print_notes(console, uncertain, left_out_text(differences), f"Results, picture and models: {results['folder']}")


def draw_comparison(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger compare`` as a PNG.

    Left: the metric on the test images against the measured speed in inference. Right: the metric on the validation
    images over the epochs.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    seeds, variants = results["settings"]["seeds"], results["variants"]
    shown = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    note = (
        f"Left: {shown}; speed: median of the paired ratios of {_rounds(results)} interleaved rounds, bars: their "
        "quartiles, hollow: uncertain.\n"
        + (f"Right: mean, and a band from the lowest to the highest of {seeds} seeds. " if seeds > 1 else "")
        + f"Vertical axes do not begin at 0. Measured on {results['environment']['device_name']}."
    )
    with picture(path, columns=2, note=note) as (figure, panels):
        colours, markers = variant_colours(variants), variant_markers(variants)
        _accuracy_against_speed(panels[0], results, colours, markers)
        _training_curves(panels[1], results, colours, markers)
        handles = [Line2D([], [], color=colours[name], marker=markers[name], lw=2, ms=8) for name in variants]
        shared_legend(figure, handles, list(variants), title=settings_text(results["settings"]))


def _rounds(results: dict[str, Any]) -> int:
    return len(results["speed"]["inference"]["timings"][0]["round_seconds"])


def _accuracy_against_speed(
    axes: Axes, results: dict[str, Any], colours: dict[str, str], markers: dict[str, str]
) -> None:
    timings = {t["name"]: t for t in results["speed"]["inference"]["timings"]}
    for name, variant in results["variants"].items():
        timing, sd = timings[name], 100 * (variant["metric_sd"] or 0)
        axes.errorbar(
            timing["speedup"], 100 * variant["metric_mean"], yerr=sd or None,
            xerr=None if name == results["baseline"] else speed_bars(timing["ratio_quartiles"], timing["speedup"]),
            fmt=markers[name], ms=12 if markers[name] == "*" else 8, capsize=3, lw=1.2, color=colours[name],
            mfc="white" if timing["uncertain"] else colours[name],
        )  # fmt: skip
    axes.margins(x=0.12, y=0.15)
    limit_percent(axes)
    axes.set_xlabel(f"inference, times as fast as {results['baseline']}")
    axes.set_ylabel(f"test {results['metric']}, %")
    head(axes, "Accuracy against measured speed")


def _training_curves(axes: Axes, results: dict[str, Any], colours: dict[str, str], markers: dict[str, str]) -> None:
    for name, variant in results["variants"].items():
        curves = [[100 * row["val_metric"] for row in run] for run in variant["history"]]
        epochs = [row["epoch"] for row in variant["history"][0]]
        if not epochs:
            continue
        mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        axes.plot(
            epochs, mean, color=colours[name], lw=1.8, marker=markers[name], ms=5, markevery=max(1, len(mean) // 8)
        )
        if len(curves) > 1:
            low, high = ([pick(values) for values in zip(*curves, strict=True)] for pick in (min, max))
            axes.fill_between(epochs, low, high, color=colours[name], alpha=0.1, lw=0)
    if not axes.lines:
        axes.text(0.5, 0.5, "no validation images", transform=axes.transAxes, ha="center", color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {results['metric']}, %")
    head(axes, "Training curves")
