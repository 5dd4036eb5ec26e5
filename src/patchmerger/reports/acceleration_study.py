"""The table and the picture of ``patchmerger accelerate-study``: accuracy kept against measured speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

_GREY = "#4d5562"
_BUDGETS = ["#e9a23b", "#d1495b", "#8d5fbf", "#3b8ea5", "#2f7d4f"]


PICTURE_FILE = "accelerations.png"


def report_accelerations(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger accelerate-study`` into its folder, and print the table."""
    draw_accelerations(results, Path(results["folder"]) / PICTURE_FILE)
    show_accelerations(results)


def show_accelerations(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger accelerate-study``: a row for each start and speed-up, a column a budget."""
    console = Console()
    console.width = max(console.width, 110)
    budgets = results["settings"]["budgets"]
    speed = {t["name"]: t["speedup"] for t in results["speed"]["timings"]}
    models = len(results["models"])
    table = Table(
        title=f"test accuracy, % (points lost or won), by share of the original training; {models} plain model"
        f"{'s' if models > 1 else ''}",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    table.add_column("start")
    for column in ("speed-up\nmeasured (predicted)", "tokens, after", *(f"{100 * b:g}%" for b in budgets)):
        table.add_column(column, justify="right", no_wrap=True)
    for start, speedup in dict.fromkeys((c["start"], c["speedup"]) for c in results["curves"]):
        cells = {c["budget"]: c for c in results["curves"] if (c["start"], c["speedup"]) == (start, speedup)}
        place = results["places"].get(f"{speedup:g}")
        where = ("1", "–") if place is None else (
            f"{speed[f'{speedup:g}']:.2f} ({place['predicted']:.2f})", f"{place['num_tokens']}, {place['after']}"
        )  # fmt: skip
        values = [f"{100 * cells[b]['accuracy']:.2f} ({100 * cells[b]['difference']:+.2f})" for b in budgets]
        table.add_row(start, *where, *values)
    console.print(table)
    console.print(results["data"], soft_wrap=True)
    console.print(f"Results and picture: {results['folder']}", soft_wrap=True)


def draw_accelerations(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate-study`` as a PNG.

    Left: accuracy against the measured speed-up, a line for each budget of training, with the plain model fine-tuned
    for as long at its left end. Right: the same from the reference start (random queries, say), where there is one.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    starts = results["settings"]["starts"]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2 * len(starts) + 0.6, 4.4), dpi=160, layout="constrained")
        panels = figure.subplots(1, len(starts), squeeze=False, sharey=True)[0]
        for axes, start in zip(panels, starts, strict=True):
            _panel(axes, results, start)
            axes.set_title(f"start: {start}", loc="left", weight="bold")
            axes.set_xlabel(f"measured speed-up ({results['environment']['device_name']})", fontsize=8)
        seeds = len(results["models"])
        panels[0].set_ylabel("test accuracy, %" + (f" (mean ± sd of {seeds} models)" if seeds > 1 else ""))
        panels[-1].legend(frameon=False, title="trained for, of the\noriginal steps", fontsize=8, title_fontsize=8,
                          loc="lower left")  # fmt: skip
        figure.savefig(path)


def _panel(axes: Axes, results: dict[str, Any], start: str) -> None:
    speed = {t["name"]: t["speedup"] for t in results["speed"]["timings"]}
    plain = next(100 * c["accuracy"] for c in results["curves"] if (c["start"], c["budget"]) == ("plain", 0))
    axes.axhline(plain, color=_GREY, lw=1, ls=":")
    budgets = results["settings"]["budgets"]
    for colour, budget in zip(_BUDGETS * len(budgets), budgets, strict=False):
        rows = [c for c in results["curves"] if c["budget"] == budget and c["start"] in ("plain", start)]
        rows.sort(key=lambda c: c["speedup"])
        x = [1.0 if c["start"] == "plain" else speed[f"{c['speedup']:g}"] for c in rows]
        y = [100 * c["accuracy"] for c in rows]
        spread = [100 * (c["sd"] or 0) for c in rows]
        label = f"{100 * budget:g}%" if budget else "nothing"
        axes.errorbar(
            x, y, yerr=spread if any(spread) else None, fmt="o-", ms=5, lw=1.8, capsize=3, color=colour, label=label
        )
    axes.set_xlim(left=0.95 * min(1.0, *speed.values()))
    for wanted, place in results["places"].items():
        axes.annotate(
            f"{place['predicted']:.2f}× by FLOPs\n{place['num_tokens']} after {place['after']}", (speed[wanted], 0.995),
            xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=6.5, color=_GREY,
        )  # fmt: skip
    axes.margins(y=0.18)
    axes.grid(alpha=0.25)
