"""The picture of ``patchmerger patterns``: which patches go on, and likeness against accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

Results = Mapping[str, Any]

_COLUMNS = 6
_WIDE = 2
"""Columns and rows that the panel of points takes."""
_TILE = (1.55, 1.75)
_MOST = 4.0
"""The largest value of the colour scale: four times the share of a patch."""


def names_of(results: Results) -> dict[str, str]:
    """What each model is called: the last part of its path that tells it apart; a run's model folder is no part.

    A copy is called by its method and keep rate, and by its plain model where there are several.
    """
    given = _told_apart([model["name"] for model in results["models"] if model["plain"] is None])
    several = len(plain_models(results)) > 1
    return {
        model["name"]: given[model["name"]] if model["plain"] is None
        else (f"{given[model['plain']]}: " if several else "") + copy_name(model)
        for model in results["models"]
    }  # fmt: skip


def copy_name(model: Results) -> str:
    """The method and the keep rate of a copy."""
    return f"{model['reducer']} {model['keep_rate']:g}"


def _told_apart(names: Sequence[str]) -> dict[str, str]:
    parts = [[part for part in PurePath(name).parts if part not in ("/", "model")] or [name] for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(set(names)):
            return dict(zip(names, short, strict=True))
    return dict(zip(names, names, strict=True))


def plain_models(results: Results) -> list[str]:
    """The models that methods were put into."""
    return list(dict.fromkeys(model["plain"] for model in results["models"] if model["plain"] is not None))


def reference_of(results: Results, model: Results) -> Results:
    """The model that one is held against: its own plain one, or the first."""
    return next(other for other in results["models"] if model["plain"] in (None, other["name"]))


def pair_of(results: Results, a: str, b: str) -> Results | None:
    """What was measured of two models; ``None`` of one alone."""
    return next((pair for pair in results["pairs"] if set(pair["models"]) == {a, b} and a != b), None)


def draw(results: Results, path: Path) -> None:
    """Draw which patches go on, and how the features' likeness goes with the accuracy, as a PNG.

    One panel a model that reduces tokens: how much of each patch its last merger lets go on, mean over the images. The
    large panel: CKA with the first model against the drop in accuracy, by the numbers of the models. Of several plain
    models each has such a panel, with the maps of its copies beside it.
    """
    names = names_of(results)
    first, *others = (names[model["name"]] for model in results["models"])
    blocks = _blocks(results)
    columns = min(_COLUMNS, max(len(block) for _, block in blocks) + _WIDE)
    heights = [_WIDE + max(0, math.ceil((len(block) - _WIDE * (columns - _WIDE)) / columns)) for _, block in blocks]
    title = f"{first} and {len(others)} others, {results['images']:,} images of {results['data'].split(':')[0]}"
    note = (
        "Maps: how much of each patch goes on after the last merger, mean over the images. Points: the models by their "
        f"numbers, against {'the first' if len(blocks) < 2 else 'their own plain model'} on the same "
        f"{results['images']:,} images."
    )
    with style.picture(path, columns=columns, rows=sum(heights), note=note, title=title, panel=_TILE) as (
        figure,
        panels,
    ):
        grid = [panels[row * columns : (row + 1) * columns] for row in range(sum(heights))]
        specification = panels[0].get_gridspec()
        image, maps, place, row = None, [], 0, 0
        for (reference, block), height in zip(blocks, heights, strict=True):
            for axes in (axes for line in grid[row : row + _WIDE] for axes in line[columns - _WIDE :]):
                axes.remove()
            likeness = figure.add_subplot(specification[row : row + _WIDE, columns - _WIDE :])  # type: ignore[index]
            free = [axes for line in grid[row : row + _WIDE] for axes in line[: columns - _WIDE]]
            free += [axes for line in grid[row + _WIDE : row + height] for axes in line]
            numbers_of = {model["name"]: place + number for number, model in enumerate(block, start=1)}
            for axes, model in zip(free, block, strict=False):
                name = names[model["name"]] if model["plain"] is None else copy_name(model)
                image = _draw_usage(axes, f"{numbers_of[model['name']]}  {name}", model["stages"][-1])
            for axes in free[len(block) :]:
                axes.set_axis_off()
            _draw_likeness(likeness, results, reference, names, numbers_of)
            maps += free
            place, row = place + len(block), row + height
        if image is not None:
            bar = figure.colorbar(
                image, ax=maps, location="bottom", ticks=[0, 1, _MOST], extend="max", shrink=0.6, aspect=40,
                anchor=(0, 0),
            )  # fmt: skip
            bar.ax.set_xticklabels(["0", "1: its share", f"{_MOST:g} and more"], fontsize=8)
            bar.outline.set_visible(False)


def _blocks(results: Results) -> list[tuple[str, list[Results]]]:
    """The models that others are held against, each with those that reduce tokens and are drawn beside it."""
    reducing = [model for model in results["models"] if model["stages"]]
    first, *further = plain_models(results) or [results["models"][0]["name"]]
    return [
        (first, [model for model in reducing if model["plain"] not in further]),
        *((plain, [model for model in reducing if model["plain"] == plain]) for plain in further),
    ]


def _draw_usage(axes: Axes, name: str, stage: Mapping[str, Any]) -> AxesImage:
    # A scale in which half and twice its share are equally far from 1; the same for all, so that maps can be compared.
    image = axes.imshow(stage["usage"], cmap="PuOr_r", norm=mpl.colors.TwoSlopeNorm(1, vmin=0, vmax=_MOST))
    tokens = numbers.counted(stage["num_tokens"], "token")
    axes.set_title(f"{name}\n{tokens} after {stage['after']}", loc="left", fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=style.GREY, linewidth=0.5)
    return image


def _draw_likeness(
    axes: Axes, results: Results, reference: str, names: Mapping[str, str], places: Mapping[str, int]
) -> None:
    first = next(model for model in results["models"] if model["name"] == reference)
    labels, alone = [], len(plain_models(results)) < 2
    for model in results["models"]:
        pair = pair_of(results, reference, model["name"])
        if pair is not None and (alone or model["name"] in places):
            x, y = pair["cka"], 100 * (first["accuracy"] - model["accuracy"])
            axes.plot(x, y, "o", color=style.variant_colours(["average"])["average"])
            labels.append((x, y, str(places.get(model["name"], names[model["name"]]))))
    style.head(axes, f"Drop from {names[reference]}")
    axes.set_xlabel(f"CKA of features with {names[reference]}")
    axes.set_ylabel("points of accuracy")
    axes.margins(0.15)
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.08 * (high - min(0.0, low)))
    axes.set_xlim(axes.get_xlim())
    style.label_beside(axes, labels)
