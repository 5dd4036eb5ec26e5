"""The table and the picture of ``patchmerger transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.reports.comparison import colours_of
from patchmerger.reports.numbers import difference_text, shown_text

_WIDTH = 130  # a narrower terminal wraps, but no number is cut


PICTURE_FILE = "transfer.png"


def report_transfer(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger transfer`` into its folder, and print the table."""
    draw_transfer(results, Path(results["folder"]) / PICTURE_FILE)
    show_transfer(results)


def show_transfer(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger transfer`` and what it means."""
    console = Console()
    console.width = max(console.width, _WIDTH)
    settings, baseline = results["settings"], results["baseline"]
    seeds = settings["seeds"]
    sources = f"{settings['data']['source']} → {settings['downstream']['source']}"
    title = f"{sources}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    columns = ("GFLOPs", "accuracy\n%", f"− {baseline}, points\n[95% interval]", "seconds", "images/s", "× faster")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    stages = list(results["variants"][baseline]["stages"])
    for stage in stages:
        for name, variant in results["variants"].items():
            found = variant["stages"][stage]
            base = results["variants"][baseline]["stages"][stage]
            spread = "" if found["metric_sd"] is None else f" ± {100 * found['metric_sd']:.2f}"
            # All k share one pass for the features.
            timed = "train_seconds" in found or stage == stages[1]
            seconds = found.get("train_seconds", found.get("feature_seconds"))
            table.add_row(
                stage if name == next(iter(results["variants"])) else "",
                escape(name),
                f"{found.get('flops', variant['flops']) / 1e9:.3g}",
                f"{100 * found['metric_mean']:.2f}{spread}",
                difference_text(found["difference"]),
                f"{seconds:.0f}" if timed else "",
                f"{found['images_per_second']:,.0f}" if timed else "",
                f"{found['images_per_second'] / base['images_per_second']:.2f}" if timed else "",
                end_section=name == list(results["variants"])[-1],
            )
    console.print(table)
    for name in results["variants"]:
        if name != baseline:
            console.print(escape(_transfer_verdict(name, results)), soft_wrap=True)
    console.print(
        "Seconds and images/s: of training, and of making the features that all k share, one after another; the "
        "speed-ups in the line above are measured with the models in turns.",
        soft_wrap=True,
    )
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)


def _transfer_verdict(name: str, results: dict[str, Any]) -> str:
    """One line on a variant: where it is better or worse, and how much faster."""
    found = results["variants"][name]["stages"]
    known = {stage: shown_text(s["difference"]) for stage, s in found.items() if s["difference"] is not None}
    parts = [f"{text}: {', '.join(s for s in known if known[s] == text)}" for text in dict.fromkeys(known.values())]
    speed = {mode: {t["name"]: t["speedup"] for t in results["speed"][mode]["timings"]} for mode in results["speed"]}
    faster = f"{speed['training'][name]:.2f} × in training, {speed['inference'][name]:.2f} × in inference"
    predicted = 1 / results["variants"][name]["flops_ratio"]
    return f"{name}: {'; '.join(parts)}. Speed-up {faster} ({predicted:.2f} × predicted)."


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
