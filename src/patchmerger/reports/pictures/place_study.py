"""The picture of ``patchmerger place-study``: accuracy against the number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

FILE = "placing.png"
WORDS = {
    "subset": "patches dropped at random", "grid": "grid of tiles", "center": "tiles towards the middle",
    "uniform": "uniform", "gaussian": "Gaussian", "sobol": "Sobol", "edges": "drawn to edges", "learned": "learned",
    "merger": "PatchMerger, same FLOPs", "placed-merger": "placed, then merged, same FLOPs",
}  # fmt: skip
COLOURS = {
    "subset": "#8a8f2a", "grid": "#56b4e9", "center": "#0072b2", "uniform": "#8d5fbf", "gaussian": "#cc79a7",
    "sobol": "#009e73", "edges": "#e69f00", "learned": "#7a4b2a", "merger": "#d55e00", "placed-merger": "#1b1b1b",
}  # fmt: skip
_MARKERS = dict(zip(COLOURS, "xsDv^oP*hX", strict=True))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger place-study`` as a PNG.

    Accuracy against the number of tokens, a line for each method: without training, and fine-tuned.
    """
    trainings = sorted({row["fine_tuned"] for row in results["curves"]})
    methods = [m for m in WORDS if any(row["method"] == m for row in results["curves"])]
    with style.picture(path, columns=len(trainings), note=_note(results)) as (figure, panels):
        for axes, fine_tuned in zip(panels, trainings, strict=True):
            for method in methods:
                rows = [r for r in results["curves"] if (r["method"], r["fine_tuned"]) == (method, fine_tuned)]
                _line(axes, rows, method)
            axes.axhline(100 * numbers.plain_accuracy(results), color=style.GREY, lw=1, ls=":")
            style.head(axes, training_text(results, fine_tuned))
            _tokens_axis(axes, results)
        panels[0].set_ylabel("test accuracy, %")
        handles = [Line2D([], [], color=style.GREY, lw=1, ls=":")]
        handles += [Line2D([], [], color=COLOURS[m], marker=_MARKERS[m], lw=1.6) for m in methods]
        labels = ["plain", *(WORDS[m] for m in methods)]
        if any(row["oracle"] is not None for row in results["curves"]):
            handles.append(Line2D([], [], color=COLOURS[results["settings"]["sampler"]], lw=1.2, ls="--"))
            labels.append("oracle (uses labels)")
        style.shared_legend(figure, handles, labels, title=numbers.models_text(results), columns=4)


def training_text(results: Mapping[str, Any], fine_tuned: bool) -> str:
    """How models were trained after their tokens were placed."""
    return f"fine-tuned, {numbers.epochs_text(results['settings']['epochs'])}" if fine_tuned else "without training"


def _line(axes: Axes, rows: list[dict[str, Any]], method: str) -> None:
    rows = sorted(rows, key=lambda row: row["num_tokens"])
    tokens, colour = [row["num_tokens"] for row in rows], COLOURS[method]
    style.accuracy_line(axes, tokens, rows, fmt=f"{_MARKERS[method]}-", lw=1.6, color=colour)
    known = [row for row in rows if row["oracle"] is not None]
    if known:
        axes.plot([r["num_tokens"] for r in known], [100 * r["oracle"] for r in known], ls="--", lw=1.2, color=colour)


def _tokens_axis(axes: Axes, results: Mapping[str, Any]) -> None:
    budgets = sorted(results["budgets"].values(), key=lambda budget: budget["num_tokens"])
    tokens = [budget["num_tokens"] for budget in budgets]
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(
        tokens, [f"{n}\n{100 * b['flops'] / results['plain_flops']:.0f}%" for n, b in zip(tokens, budgets, strict=True)]
    )
    axes.set_xlabel("placed tokens, or a merger with their FLOPs (% of plain)")


def _note(results: Mapping[str, Any]) -> str:
    models = len(results["models"])
    spread = f"Mean ± standard deviation of {models} models. " if models > 1 else ""
    merges = "; ".join(
        f"{budget['num_tokens']} tokens: {_merge_text(budget['merges'])}"
        for budget in results["budgets"].values()
        if budget["merges"]
    )
    oracle = ""
    if any(row["oracle"] is not None for row in results["curves"]):
        oracle = "\nThe oracle fits positions to each test image by its label: an upper bound, no method."
    return f"{spread}Mergers at the FLOPs of {merges}.{oracle}\nVertical axes do not begin at 0, and differ."


def _merge_text(merges: dict[str, dict[str, int]]) -> str:
    words = {"merger": "patches", "placed-merger": "placed"}
    return ", ".join(
        f"{m['num_placed']} {words[name]} → {m['num_tokens']} after block {m['after']}" for name, m in merges.items()
    )
