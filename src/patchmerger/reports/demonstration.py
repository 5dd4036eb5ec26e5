"""The table and the picture of ``patchmerger demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchmerger.reports.numbers import counted, difference_text, left_out_text
from patchmerger.reports.style import GREY, head, picture, speed_bars, variant_colours, variant_markers
from patchmerger.reports.tables import new_table, print_notes, print_table, report_console

PICTURE_FILE = "demo.png"


def report_demonstration(results: dict[str, Any]) -> None:
    """Draw the picture into the folder of the results, and print the table."""
    draw_demonstration(results, Path(results["folder"]) / PICTURE_FILE)
    show_demonstration(results)


def show_demonstration(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger demo``."""
    console = report_console()
    console.print(results["data"], soft_wrap=True)
    columns = ("accuracy, %\n[95% interval]", "− plain, points\n[95% interval]", "agrees with\nplain, %",
               "times as fast\n(predicted)")  # fmt: skip
    table = new_table(["model"], columns)
    speedup = results["speedup"]
    others = {"plain": ("–", "–", "1.00"), "merged": (
        difference_text(results["difference"]), f"{100 * results['agreement']:.1f}",
        f"{speedup['measured']:.2f} ({speedup['predicted']:.2f})",
    )}  # fmt: skip
    for name, found in results["models"].items():
        low, high = (100 * end for end in found["interval"])
        table.add_row(name, f"{100 * found['accuracy']:.2f} [{low:.2f}, {high:.2f}]", *others[name])
    print_table(console, table)
    placement, seeds = results["placement"], len(results["models"]["plain"]["accuracies"])
    print_notes(
        console,
        f"Merged to {placement['num_tokens']} tokens after block {placement['after']}; "
        f"{counted(seeds, 'split')}, {results['models']['plain']['images']} test images each.",
        left_out_text([results["difference"]]),
        f"Models, results and picture: {results['folder']}",
    )


def draw_demonstration(results: dict[str, Any], path: Path) -> None:
    """Draw accuracy against measured speed as a PNG.

    Args:
        results: The content of ``results.json``.
        path: The file.
    """
    colours, markers = variant_colours(results["models"]), variant_markers(results["models"])
    timing = next(t for t in results["speed"]["timings"] if t["name"] == "accelerated")
    speeds = {"plain": 1.0, "merged": results["speedup"]["measured"]}
    bars = {"plain": None, "merged": speed_bars(timing["ratio_quartiles"], timing["speedup"])}
    seeds = len(results["models"]["plain"]["accuracies"])
    note = (
        f"Handwritten digits (scikit-learn), {counted(seeds, 'split')}. Vertical bars: 95% interval of the accuracy on "
        f"{results['models']['plain']['images']} test images; horizontal: quartiles of the measured speed. The axis of "
        "accuracy does not begin at 0."
    )
    with picture(path, columns=1, note=note) as (_, (axes,)):
        for name, found in results["models"].items():
            value, (low, high) = 100 * found["accuracy"], (100 * end for end in found["interval"])
            axes.errorbar(
                speeds[name], value, yerr=[[value - low], [high - value]], xerr=bars[name], color=colours[name],
                marker=markers[name], ms=10, capsize=4, lw=1.2,
            )  # fmt: skip
            axes.annotate(
                f"{name}: {value:.1f}%", (speeds[name], value), xytext=(9, 9), textcoords="offset points",
                color=colours[name], weight="bold",
            )  # fmt: skip
        predicted = results["speedup"]["predicted"]
        axes.axvline(predicted, color=GREY, lw=1, ls=":")
        axes.annotate(
            f"{predicted:.2f} by FLOPs", (predicted, 0.02), xycoords=("data", "axes fraction"), xytext=(-4, 0),
            textcoords="offset points", rotation=90, ha="right", color=GREY, fontsize=8,
        )  # fmt: skip
        axes.set_xlim(0.9, 1.15 * max(predicted, speeds["merged"]))
        axes.margins(y=0.2)
        axes.set_xlabel("times as fast as the plain model, inference")
        axes.set_ylabel("accuracy on test images, %")
        head(axes, "A trained ViT, made faster")
