"""The table and the picture of ``patchmerger accelerate-study``: accuracy kept against measured speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from patchmerger.reports.numbers import (
    counted,
    left_out_text,
    model_text,
    speed_text,
    uncertain_text,
)
from patchmerger.reports.style import GREY, head, ordered_colours, picture, shared_legend, speed_bars
from patchmerger.reports.tables import print_table, report_console

PICTURE_FILE = "accelerations.png"


def report_accelerations(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger accelerate-study`` into its folder, and print the table."""
    draw_accelerations(results, Path(results["folder"]) / PICTURE_FILE)
    show_accelerations(results)


def show_accelerations(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger accelerate-study``: a row for each init and speed-up, a column a budget."""
    console = report_console()
    budgets = results["settings"]["budgets"]
    speed = {t["name"]: speed_text(t) for t in results["speed"]["timings"]}
    table = Table(
        title="test accuracy, % (points lost or won), by share of the original training; "
        f"{counted(len(results['models']), 'plain model')}",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    table.add_column("queries", no_wrap=True)
    for column in ("speed-up\nmeasured (predicted)", "tokens, after", *(f"{100 * b:g}%" for b in budgets)):
        table.add_column(column, justify="right", no_wrap=True)
    for init, speedup in dict.fromkeys((c["query_init"], c["speedup"]) for c in results["curves"]):
        cells = {c["budget"]: c for c in results["curves"] if (c["query_init"], c["speedup"]) == (init, speedup)}
        place = results["places"].get(f"{speedup:g}")
        where = ("1", "–") if place is None else (
            f"{speed[f'{speedup:g}']} ({place['predicted']:.2f})", f"{place['num_tokens']}, {place['after']}"
        )  # fmt: skip
        values = [f"{100 * cells[b]['accuracy']:.2f} ({100 * cells[b]['difference']:+.2f})" for b in budgets]
        table.add_row(init, *where, *values)
    print_table(console, table, keys=2)
    console.print(results["data"], soft_wrap=True)
    uncertain = uncertain_text((f"{t['name']}×", t) for t in results["speed"]["timings"] if t["name"] != "plain")
    if uncertain is not None:
        console.print(uncertain, soft_wrap=True)
    left_out = left_out_text(results["curves"])
    if left_out is not None:
        console.print(left_out, soft_wrap=True)
    console.print(f"Results and picture: {results['folder']}", soft_wrap=True)


def draw_accelerations(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate-study`` as a PNG.

    A panel for each query initialisation: accuracy against the measured speed-up, a line for each budget of training,
    with the plain model fine-tuned for as long at its left end.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    inits, budgets = results["settings"]["query_inits"], results["settings"]["budgets"]
    source = results["data"].split(":")[0] if isinstance(results["data"], str) else results["data"]["source"]
    with picture(path, columns=len(inits), note=_note(results)) as (figure, panels):
        colours = ordered_colours(len(budgets))
        for axes, init in zip(panels, inits, strict=True):
            _panel(axes, results, init, colours)
            axes.sharey(panels[0])
            head(axes, f"queries: {init}")
            axes.set_xlabel("inference, times as fast as plain")
        panels[0].set_ylabel("test accuracy, %")
        handles = [Line2D([], [], color=colour, marker="o", lw=1.8) for colour in colours]
        labels = [f"{100 * budget:g}% of the original steps" if budget else "no training" for budget in budgets]
        plain = Line2D([], [], color=GREY, lw=1, ls=":")
        title = f"{source}: {model_text(results['model'])}, {counted(len(results['models']), 'trained plain model')}"
        shared_legend(figure, [plain, *handles], ["plain, as it was trained", *labels], title=title)


def _note(results: dict[str, Any]) -> str:
    models = len(results["models"])
    asked = "; ".join(
        f"asked for {wanted}: {place['num_tokens']} tokens after {place['after']}, {place['predicted']:.2f} by FLOPs"
        for wanted, place in results["places"].items()
    )
    spread = f"Mean ± standard deviation of {models} models. " if models > 1 else ""
    return (
        f"Speed-up {asked}.\n{spread}At 1: the plain model, fine-tuned for as long. Speed: median of the paired ratios "
        f"of interleaved rounds, bars: their quartiles; {results['environment']['device_name']}.\n"
        "Vertical axes do not begin at 0."
    )


def _panel(axes: Axes, results: dict[str, Any], init: str, colours: list[str]) -> None:
    timings = {t["name"]: t for t in results["speed"]["timings"]}
    plain = next(100 * c["accuracy"] for c in results["curves"] if (c["query_init"], c["budget"]) == ("plain", 0))
    axes.axhline(plain, color=GREY, lw=1, ls=":")
    for colour, budget in zip(colours, results["settings"]["budgets"], strict=True):
        rows = [c for c in results["curves"] if c["budget"] == budget and c["query_init"] in ("plain", init)]
        rows.sort(key=lambda c: c["speedup"])
        of_rows = [timings["plain" if c["query_init"] == "plain" else f"{c['speedup']:g}"] for c in rows]
        bars = [speed_bars(t["ratio_quartiles"], t["speedup"]) for t in of_rows]
        sds = [100 * (c["sd"] or 0) for c in rows]
        axes.errorbar(
            [t["speedup"] for t in of_rows], [100 * c["accuracy"] for c in rows], yerr=sds if any(sds) else None,
            xerr=[[bar[side][0] for bar in bars] for side in (0, 1)], fmt="o-", ms=5, lw=1.8, elinewidth=1, capsize=3,
            color=colour,
        )  # fmt: skip
