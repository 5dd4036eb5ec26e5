"""The tables and the picture of ``patchmerger patterns``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from rich.markup import escape
from rich.table import Table

from patchmerger.reports.numbers import counted
from patchmerger.reports.style import GREY, head, label_beside, picture, variant_colours
from patchmerger.reports.tables import new_table, print_table, report_console

_COLUMNS = 6
_WIDE = 2
"""Columns and rows that the panel of points takes."""
_TILE = (1.55, 1.75)
_MOST = 4.0
"""The largest value of the colour scale: four times the share of a patch."""
MEASURES = {"cka": "CKA of features", "procrustes": "Procrustes", "iou": "kept patches", "nmi": "groups"}


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
    if any(pair["iou"] is not None for pair in results["pairs"]):
        console.print("In brackets: what sets of these sizes drawn at random would have in common.", soft_wrap=True)
    for line in correlation_notes(results):
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
        pair = pair_of(results, first["name"], model["name"])
        against = ["", "", "", ""]
        if pair is not None:
            drop = 100 * (first["accuracy"] - model["accuracy"])
            against = [
                f"{drop:.2f}",
                f"{100 * pair['agreement']:.1f}",
                f"{pair['cka']:.3f}",
                f"{pair['procrustes']:.3f}",
            ]
        accuracy = f"{100 * model['accuracy']:.2f}"
        table.add_row(escape(name), stages_text(model), f"{model['flops'] / 1e9:.3g}", accuracy, *against)
    return table


def stages_text(model: Mapping[str, Any]) -> str:
    """How many tokens go on after which blocks."""
    return ", ".join(f"{stage['num_tokens']} after {stage['after']}" for stage in model["stages"]) or "all"


def pair_of(results: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    """What was measured of two models; ``None`` of one alone."""
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
        cells = ["" if other <= row else _cell(pair_of(results, name, having[other]), measure) for other in
                 range(1, len(having))]  # fmt: skip
        table.add_row(escape(short[name]), *cells)
    return table


def _cell(pair: Mapping[str, Any] | None, measure: str) -> str:
    if pair is None or pair[measure] is None:
        return "–"
    chance = f" ({pair['iou_by_chance']:.2f})" if measure == "iou" else ""
    return f"{pair[measure]:.2f}{chance}"


def correlation_notes(results: Mapping[str, Any]) -> list[str]:
    """The rank correlations with the accuracy, in sentences."""
    lines, names = [], short_names([model["name"] for model in results["models"]])
    short = dict(zip((model["name"] for model in results["models"]), names, strict=True))
    shown = [found for found in results["correlations"] if found["model"] in (None, results["models"][0]["name"])]
    for found in shown:
        known = {what: found[measure] for measure, what in MEASURES.items() if found[measure] is not None}
        over = "all pairs, with the size of the difference in accuracy" if found["model"] is None else (
            f"{short[found['model']]} and each other model, with the drop in accuracy"
        )  # fmt: skip
        if known:
            parts = [
                f"{what} τ = {rank['kendall']['tau']:.2f}, ρ = {rank['spearman']['rho']:.2f} (n = {rank['pairs']})"
                for what, rank in known.items()
            ]
            lines.append(f"Rank correlation (Kendall τ, Spearman ρ) over {over}: {'; '.join(parts)}.")
    if not any(found[measure] for found in shown for measure in MEASURES):
        lines.append("Rank correlations with the drop in accuracy need at least four pairs: name more models.")
    return lines


def draw_patterns(results: Mapping[str, Any], path: Path) -> None:
    """Draw which patches go on, and how the features' likeness goes with the accuracy, as a PNG.

    One panel a model that reduces tokens: how much of each patch its last merger lets go on, mean over the images. The
    last panel: CKA with the first model against the drop in accuracy, by the numbers of the models.

    Args:
        results: What :func:`patchmerger.patterns.compare_patterns` gives.
        path: The file.
    """
    names = short_names([model["name"] for model in results["models"]])
    reducing = [(name, model) for name, model in zip(names, results["models"], strict=True) if model["stages"]]
    numbers = {model["name"]: number for number, (_, model) in enumerate(reducing, start=1)}
    columns = min(_COLUMNS, len(reducing) + _WIDE)
    maps_beside = columns - _WIDE
    rows = _WIDE + max(0, math.ceil((len(reducing) - _WIDE * maps_beside) / columns))
    title = f"{names[0]} and {len(names) - 1} others, {results['images']:,} images of {results['data'].split(':')[0]}"
    with picture(path, columns=columns, rows=rows, note=_note(results), title=title, panel=_TILE) as (figure, panels):
        grid = [panels[row * columns : (row + 1) * columns] for row in range(rows)]
        specification = panels[0].get_gridspec()
        for axes in (axes for row in grid[:_WIDE] for axes in row[maps_beside:]):
            axes.remove()
        likeness = figure.add_subplot(specification[:_WIDE, maps_beside:])  # type: ignore[index]
        free = [axes for row in grid[:_WIDE] for axes in row[:maps_beside]] + [a for row in grid[_WIDE:] for a in row]
        for axes, (name, model) in zip(free, reducing, strict=False):
            image = _draw_usage(axes, f"{numbers[model['name']]}  {name}", model["stages"][-1])
        for axes in free[len(reducing) :]:
            axes.set_axis_off()
        if reducing:
            bar = figure.colorbar(
                image, ax=free, location="bottom", ticks=[0, 1, _MOST], extend="max", shrink=0.6, aspect=40,
                anchor=(0, 0),
            )  # fmt: skip
            bar.ax.set_xticklabels(["0", "1: its share", f"{_MOST:g} and more"], fontsize=8)
            bar.outline.set_visible(False)
        _draw_likeness(likeness, results, names, numbers)


def _note(results: Mapping[str, Any]) -> str:
    return (
        f"Maps: how much of each patch goes on after the last merger, mean over the images. Points: the models by "
        f"their numbers, against the first on the same {results['images']:,} images."
    )


def _draw_usage(axes: Axes, name: str, stage: Mapping[str, Any]) -> AxesImage:
    # A scale in which half and twice its share are equally far from 1; the same for all, so that maps can be compared.
    image = axes.imshow(stage["usage"], cmap="PuOr_r", norm=mpl.colors.TwoSlopeNorm(1, vmin=0, vmax=_MOST))
    axes.set_title(f"{name}\n{counted(stage['num_tokens'], 'token')} after {stage['after']}", loc="left", fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=GREY, linewidth=0.5)
    return image


def _draw_likeness(axes: Axes, results: Mapping[str, Any], names: Sequence[str], numbers: Mapping[str, int]) -> None:
    first, labels = results["models"][0], []
    for name, model in list(zip(names, results["models"], strict=True))[1:]:
        pair = pair_of(results, first["name"], model["name"])
        if pair is not None:
            x, y = pair["cka"], 100 * (first["accuracy"] - model["accuracy"])
            axes.plot(x, y, "o", color=variant_colours(["average"])["average"])
            labels.append((x, y, str(numbers.get(model["name"], name))))
    head(axes, f"Drop from {names[0]}")
    axes.set_xlabel(f"CKA of features with {names[0]}")
    axes.set_ylabel("points of accuracy")
    axes.margins(0.15)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.08 * (high - min(0.0, low)))
    axes.set_xlim(axes.get_xlim())
    label_beside(axes, labels)
