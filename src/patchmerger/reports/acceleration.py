"""What ``patchmerger accelerate`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from patchmerger.reports.numbers import (
    count_text,
    difference_text,
    uncertain_text,
)
from patchmerger.reports.tables import print_table, report_console

PICTURE_FILE = "acceleration.png"
_ROWS = {"plain": "plain", "initialised": "merged, not trained", "recovered": "recovered"}


def report_acceleration(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger accelerate`` into its folder, and print the table."""
    draw_acceleration(results, Path(results["folder"]) / PICTURE_FILE)
    show_acceleration(results)


def show_acceleration(results: dict[str, Any]) -> None:
    """Print the table, whether the target was met, and where the model is."""
    console = report_console()
    found, timings = results["evaluation"], {t["name"]: t for t in results["speed"]["timings"]}
    console.print(results["data"], soft_wrap=True)
    placement = results["placement"]
    table = Table(
        title=f"{results['settings']['model']}: {placement['num_tokens']} tokens after block {placement['after']}",
        box=box.SIMPLE_HEAD, title_style="bold",
    )  # fmt: skip
    columns = ["", f"{results['metric']}\n%", "− plain, points\n[95% interval]", "agrees with\nplain, %", "ECE\n%"]
    columns += ["images/s", "speed-up\n(predicted)", "params", "peak memory\nMiB"]
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for key, name in _ROWS.items():
        p, t = found[key], timings["plain" if key == "plain" else "accelerated"]
        value = p["agreement"] if p["accuracy"] is None else p["accuracy"]
        speed = f"{t['speedup']:.2f} ({results['speedup']['predicted']:.2f})"
        memory = "–" if t["peak_memory"] is None else f"{t['peak_memory'] / 2**20:,.0f}"
        table.add_row(
            name,
            f"{100 * value:.2f}",
            "–" if key == "plain" else difference_text(p["difference"]),
            "–" if key == "plain" else f"{100 * p['agreement']:.1f}",
            "–" if p["ece"] is None else f"{100 * p['ece']:.1f}",
            *((f"{t['images_per_second']:,.0f}", "–" if key == "plain" else speed, count_text(t["params"]), memory)
              if key != "initialised" else ("", "", "", "")),
        )  # fmt: skip
    print_table(console, table)
    console.print(_verdict(results), soft_wrap=True)
    uncertain = uncertain_text([("accelerated", timings["accelerated"])])
    if uncertain is not None:
        console.print(uncertain, soft_wrap=True)
    recovery = results["recovery"]
    if recovery["steps"]:
        console.print(
            f"Recovery: {recovery['steps']:,} steps, {recovery['epochs']:.2g} epochs, {recovery['seconds']:.0f} s "
            f"({recovery['precision']}); speed in {results['speed']['precision']}, batch of "
            f"{results['speed']['batch_size']}, on {results['environment']['device_name']}.",
            soft_wrap=True,
        )
    for name, phase in recovery["phases"].items():
        console.print(_phase(name, phase), soft_wrap=True)
    console.print(f"Model, results and picture: {results['folder']}", soft_wrap=True)


def _phase(name: str, phase: dict[str, Any]) -> str:
    """What one phase of the recovery did, in words."""
    watched, kept = phase["watched"], phase["kept"]
    on = "" if kept is None else f" on kept tokens of {kept['views']:,} views ({kept['bytes'] / 2**30:.2g} GiB)"
    change = f"{100 * watched['before']:.1f} → {100 * watched['after']:.1f}% of {watched['images']:,} watched images"
    ended = "" if phase["result"] == "recovered" else "; it ended below its beginning, which is what was kept"
    return f"  {name}: {phase['steps']:,} steps{on}, {change}{ended}."


def _verdict(results: dict[str, Any]) -> str:
    found = results["evaluation"]
    if results["met"] is None:
        return f"It agrees with the plain model on {100 * found['recovered']['agreement']:.1f}% of the images."
    lost = 100 * (found["plain"]["accuracy"] - found["recovered"]["accuracy"])
    change = f"{lost:.2f} points lost" if lost > 0 else f"{-lost:.2f} points won"
    if results["met"]:
        return f"[bold]{change}[/bold]: within the {results['max_drop']:g} that were accepted."
    return (
        f"[bold]{change}[/bold]: more than the {results['max_drop']:g} that were accepted; the model is kept all the "
        f"same. What would help: {', '.join(results['advice'])}."
    )


_GREY, _RED, _BLUE = "#4d5562", "#d1495b", "#3b8ea5"
STAGES = {"plain": "plain", "initialised": "merged,\nnot trained", "recovered": "recovered"}


def draw_acceleration(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate`` as a PNG.

    Left: accuracy (without labels: agreement with the plain model) of the plain model, with the queries initialised and
    after the recovery. Right: how many times faster it is, measured and predicted.

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
    values = {stage: 100 * results["evaluation"][stage][key] for stage in STAGES}
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
    axes.set_ylabel(f"{what} on {results['evaluation']['plain']['images']:,} held-out images, %", fontsize=8)
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
