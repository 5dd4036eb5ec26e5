"""The tables and the picture of ``patchmerger patterns``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from patchmerger.reports.style import GREY, PANEL, head, picture
from patchmerger.reports.tables import new_table, print_table, report_console

_COLUMNS = 4
_MEASURES = {"cka": "CKA of features", "procrustes": "Procrustes", "iou": "kept patches", "nmi": "groups"}


def show_patterns(results: Mapping[str, Any]) -> None:
    """Print the tables of ``patchmerger patterns``.

    Args:
        results: What :func:`patchmerger.patterns.compare_patterns` gives.
    """
    console = report_console()
    names = short_names([model["name"] for model in results["models"]])
    print_table(console, _models_table(results, names))
    for measure, what in (("iou", "IoU of the kept patches"), ("nmi", "Normalised mutual information of the groups")):
        table = _pairs_table(results, names, measure, what)
        if table is not None:
            print_table(console, table)
    for line in _lines(results, names):
        console.print(escape(line), soft_wrap=True)


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each path that tells the models apart; that of a run's folder and its model folder is one."""
    parts = [[part for part in PurePath(name).parts if part not in ("/", "model")] or [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def _models_table(results: Mapping[str, Any], names: Sequence[str]) -> Table:
    first = results["models"][0]
    title = f"{results['images']:,} images of {results['data'].split(':')[0]}, against {names[0]}"
    columns = ("GFLOPs", "accuracy\n%", "drop\npoints", "agree\n%", "CKA", "Procrustes")
    table = new_table(["model", "tokens\nafter block"], columns, title=title)
    for name, model in zip(names, results["models"], strict=True):
        pair = _pair_of(results, first["name"], model["name"])
        against = ["", "", "", ""]
        if pair is not None:
            drop = 100 * (first["accuracy"] - model["accuracy"])
            against = [
                f"{drop:.2f}",
                f"{100 * pair['agreement']:.1f}",
                f"{pair['cka']:.3f}",
                f"{pair['procrustes']:.3f}",
            ]
        places = ", ".join(f"{stage['num_tokens']} after {stage['after']}" for stage in model["stages"]) or "all"
        accuracy = f"{100 * model['accuracy']:.2f}"
        table.add_row(escape(name), places, f"{model['flops'] / 1e9:.3g}", accuracy, *against)
    return table


def _pair_of(results: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    return next((pair for pair in results["pairs"] if set(pair["models"]) == {a, b} and a != b), None)


def _pairs_table(results: Mapping[str, Any], names: Sequence[str], measure: str, what: str) -> Table | None:
    """A measure for every two models that have it; ``None`` where none have."""
    every = [model["name"] for model in results["models"]]
    having = [name for name in every if any(name in p["models"] and p[measure] is not None for p in results["pairs"])]
    if not having:
        return None
    short = dict(zip(every, names, strict=True))
    table = new_table(["model"], [escape(short[name]) for name in having[1:]], title=what)
    for row, name in enumerate(having[:-1]):
        cells = ["" if other <= row else _cell(_pair_of(results, name, having[other]), measure) for other in
                 range(1, len(having))]  # fmt: skip
        table.add_row(escape(short[name]), *cells)
    return table


def _cell(pair: Mapping[str, Any] | None, measure: str) -> str:
    if pair is None or pair[measure] is None:
        return "–"
    chance = f" ({pair['iou_by_chance']:.2f})" if measure == "iou" else ""
    return f"{pair[measure]:.2f}{chance}"


def _lines(results: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    lines = []
    if any(pair["iou"] is not None for pair in results["pairs"]):
        lines.append("In brackets: what sets of these sizes drawn at random would have in common.")
    short = dict(zip((model["name"] for model in results["models"]), names, strict=True))
    shown = [found for found in results["correlations"] if found["model"] in (None, results["models"][0]["name"])]
    for found in shown:
        known = {what: found[measure] for measure, what in _MEASURES.items() if found[measure] is not None}
        over = "all pairs, with the size of the difference in accuracy" if found["model"] is None else (
            f"{short[found['model']]} and each other model, with the drop in accuracy"
        )  # fmt: skip
        if known:
            parts = [
                f"{what} τ = {rank['kendall']['tau']:.2f}, ρ = {rank['spearman']['rho']:.2f} (n = {rank['pairs']})"
                for what, rank in known.items()
            ]
            lines.append(f"Rank correlation (Kendall τ, Spearman ρ) over {over}: {'; '.join(parts)}.")
    if not any(found[measure] for found in shown for measure in _MEASURES):
        lines.append("Rank correlations with the drop in accuracy need at least four pairs: name more models.")
    return lines


def draw_patterns(results: Mapping[str, Any], path: Path) -> None:
    """Draw which patches go on, and how the features' likeness goes with the accuracy, as a PNG.

    One panel a model that reduces tokens: how much of each patch its last merger lets go on, mean over the images. The
    last panel: CKA with the first model against the drop in accuracy.

    Args:
        results: What :func:`patchmerger.patterns.compare_patterns` gives.
        path: The file.
    """
    names = short_names([model["name"] for model in results["models"]])
    reducing = [(name, model) for name, model in zip(names, results["models"], strict=True) if model["stages"]]
    panels = len(reducing) + 1
    columns = min(_COLUMNS, panels)
    note = (
        "Maps: how much of each patch goes on after the last merger, mean over the images; 1 is its share if all were "
        "treated alike. Points: each model against the first."
    )
    title = f"{results['images']:,} images of {results['data'].split(':')[0]}"
    rows = math.ceil(panels / columns)
    with picture(path, columns=columns, rows=rows, note=note, title=title) as (figure, axes):
        figure.set_size_inches(columns * 0.68 * PANEL[0], rows * 0.86 * PANEL[1] + 0.9)
        for panel, (name, model) in zip(axes, reducing, strict=False):
            _draw_usage(figure, panel, name, model["stages"][-1])
        _draw_likeness(axes[len(reducing)], results, names)
        for panel in axes[panels:]:
            panel.set_axis_off()


def _draw_usage(figure: Figure, axes: Axes, name: str, stage: Mapping[str, Any]) -> None:
    # A scale in which half and twice its share are equally far from 1.
    scale = mpl.colors.TwoSlopeNorm(1, vmin=0, vmax=max(2.0, max(map(max, stage["usage"]))))
    image = axes.imshow(stage["usage"], cmap="PuOr_r", norm=scale)
    axes.set_title(f"{name}\n{stage['num_tokens']} tokens after block {stage['after']}", loc="left", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, scale.vmax])
    bar.ax.tick_params(labelsize=8)
    bar.ax.set_yticklabels(["0", "1", f"{scale.vmax:.1f}"])


def _draw_likeness(axes: Axes, results: Mapping[str, Any], names: Sequence[str]) -> None:
    first = results["models"][0]
    for name, model in list(zip(names, results["models"], strict=True))[1:]:
        pair = _pair_of(results, first["name"], model["name"])
        if pair is not None:
            place = (pair["cka"], 100 * (first["accuracy"] - model["accuracy"]))
            axes.plot(*place, "o", color="#0072b2")
            axes.annotate(name, place, xytext=(3, 3), textcoords="offset points", fontsize=7, color=GREY)
    head(axes, f"Drop from {names[0]}")
    axes.set_xlabel("CKA of features with it")
    axes.set_ylabel("points of accuracy")
    axes.margins(0.15)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
