"""The picture of ``patchmerger patterns``: which patches go on, and likeness against accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

_COLUMNS = 6
_WIDE = 2
"""Columns and rows that the panel of points takes."""
_TILE = (1.55, 1.75)
_MOST = 4.0
"""The largest value of the colour scale: four times the share of a patch."""


def names_of(results: Mapping[str, Any]) -> dict[str, str]:
    """What each model is called: the last part of its path that tells it apart; a run's model folder is no part."""
    names = [model["name"] for model in results["models"]]
    parts = [[part for part in PurePath(name).parts if part not in ("/", "model")] or [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(set(names)):
            return dict(zip(names, short, strict=True))
    return dict(zip(names, names, strict=True))


def pair_of(results: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any] | None:
    """What was measured of two models; ``None`` of one alone."""
    return next((pair for pair in results["pairs"] if set(pair["models"]) == {a, b} and a != b), None)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw which patches go on, and how the features' likeness goes with the accuracy, as a PNG.

    One panel a model that reduces tokens: how much of each patch its last merger lets go on, mean over the images. The
    last panel: CKA with the first model against the drop in accuracy, by the numbers of the models.
    """
    names = names_of(results)
    first, *others = (names[model["name"]] for model in results["models"])
    reducing = [model for model in results["models"] if model["stages"]]
    places = {model["name"]: place for place, model in enumerate(reducing, start=1)}
    columns = min(_COLUMNS, len(reducing) + _WIDE)
    maps_beside = columns - _WIDE
    rows = _WIDE + max(0, math.ceil((len(reducing) - _WIDE * maps_beside) / columns))
    title = f"{first} and {len(others)} others, {results['images']:,} images of {results['data'].split(':')[0]}"
    note = (
        "Maps: how much of each patch goes on after the last merger, mean over the images. Points: the models by their "
        f"numbers, against the first on the same {results['images']:,} images."
    )
    with style.picture(path, columns=columns, rows=rows, note=note, title=title, panel=_TILE) as (figure, panels):
        grid = [panels[row * columns : (row + 1) * columns] for row in range(rows)]
        specification = panels[0].get_gridspec()
        for axes in (axes for row in grid[:_WIDE] for axes in row[maps_beside:]):
            axes.remove()
        likeness = figure.add_subplot(specification[:_WIDE, maps_beside:])  # type: ignore[index]
        free = [axes for row in grid[:_WIDE] for axes in row[:maps_beside]] + [a for row in grid[_WIDE:] for a in row]
        for axes, (name, place) in zip(free, places.items(), strict=False):
            image = _draw_usage(axes, f"{place}  {names[name]}", reducing[place - 1]["stages"][-1])
        for axes in free[len(reducing) :]:
            axes.set_axis_off()
        if reducing:
            bar = figure.colorbar(
                image, ax=free, location="bottom", ticks=[0, 1, _MOST], extend="max", shrink=0.6, aspect=40,
                anchor=(0, 0),
            )  # fmt: skip
            bar.ax.set_xticklabels(["0", "1: its share", f"{_MOST:g} and more"], fontsize=8)
            bar.outline.set_visible(False)
        _draw_likeness(likeness, results, names, places)


def _draw_usage(axes: Axes, name: str, stage: Mapping[str, Any]) -> AxesImage:
    # A scale in which half and twice its share are equally far from 1; the same for all, so that maps can be compared.
    image = axes.imshow(stage["usage"], cmap="PuOr_r", norm=mpl.colors.TwoSlopeNorm(1, vmin=0, vmax=_MOST))
    tokens = numbers.counted(stage["num_tokens"], "token")
    axes.set_title(f"{name}\n{tokens} after {stage['after']}", loc="left", fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=style.GREY, linewidth=0.5)
    return image


def _draw_likeness(axes: Axes, results: Mapping[str, Any], names: Mapping[str, str], places: Mapping[str, int]) -> None:
    first, labels = results["models"][0], []
    for model in results["models"][1:]:
        pair = pair_of(results, first["name"], model["name"])
        if pair is not None:
            x, y = pair["cka"], 100 * (first["accuracy"] - model["accuracy"])
            axes.plot(x, y, "o", color=style.variant_colours(["average"])["average"])
            labels.append((x, y, str(places.get(model["name"], names[model["name"]]))))
    style.head(axes, f"Drop from {names[first['name']]}")
    axes.set_xlabel(f"CKA of features with {names[first['name']]}")
    axes.set_ylabel("points of accuracy")
    axes.margins(0.15)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.08 * (high - min(0.0, low)))
    axes.set_xlim(axes.get_xlim())
    style.label_beside(axes, labels)
