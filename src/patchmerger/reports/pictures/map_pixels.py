"""Merge maps as pixels: arrays of colours in which each patch's colour lies exactly where the patch is."""

from __future__ import annotations

from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.float64]
"""Red, green and blue from 0 to 1, (H, W, 3)."""

Cells: TypeAlias = NDArray[Any]
"""One number a patch, (rows, columns)."""

MAP_COLOURS = "inferno"
"""Of weights, from none (dark) to the most of a map (light): perceptually even, and alike to colour-blind eyes."""

TAKEN_COLOURS = "cividis"
"""Of what all tokens take of a patch, from nothing (dark) to twice an equal share and more (light)."""

TAKEN_REACH = 2.0

# Okabe and Ito's colours, and further ones that stay apart from them; neighbours in the list differ most.
_TOKENS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#7a4b2a",
    "#8a8f2a", "#8d5fbf", "#9ad0c2", "#b03a5b", "#4d5562", "#c7b299", "#2f4b9a", "#f4a6a0",
)  # fmt: skip


def token_colours(count: int) -> list[str]:
    """A colour for each token; from 16 on they come again, so that numbers must say which token it is."""
    return [_TOKENS[place % len(_TOKENS)] for place in range(count)]


def enlarge(cells: Cells, size: tuple[int, int]) -> Cells:
    """Each pixel the number of the patch that it lies in, (H, W) from (rows, columns).

    Pixel (y, x) lies in the patch of row ``⌊y · rows / H⌋`` and column ``⌊x · columns / W⌋``.
    """
    rows = np.arange(size[0]) * cells.shape[0] // size[0]
    columns = np.arange(size[1]) * cells.shape[1] // size[1]
    enlarged: Cells = cells[rows[:, None], columns]
    return enlarged


def greyscale(view: Pixels) -> Pixels:
    """An image without its colours, (H, W, 3)."""
    grey: Pixels = (view @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, axis=-1)
    return grey


def overlay(view: Pixels, weights: Cells) -> Pixels:
    """A map over its image (H, W, 3): the more of a patch is taken, the lighter and the more of its colour."""
    strength = enlarge(weights / max(float(weights.max()), 1e-12), view.shape[:2])
    return _blend(view, strength, MAP_COLOURS, 0.25 + 0.55 * strength)


def taken_overlay(view: Pixels, taken: Cells) -> Pixels:
    """What all tokens take of each patch, over the image; 1 is an equal share, and the scale ends at 2."""
    strength = enlarge(np.clip(taken / TAKEN_REACH, 0, 1), view.shape[:2])
    return _blend(view, strength, TAKEN_COLOURS, np.full(strength.shape, 0.7))


def segmentation(view: Pixels, leading: Cells, colours: list[str]) -> Pixels:
    """Each patch in the colour of the token that takes most of it; a patch that no token takes is dark grey.

    ``leading`` is the token of each patch of the image (H, W, 3), from 0, (rows, columns); −1 where there is none.
    """
    palette = np.array([*map(mpl.colors.to_rgb, colours), (0.1, 0.1, 0.1)])  # −1 is the last
    inks = palette[enlarge(leading, view.shape[:2])]
    opacity = enlarge(np.where(leading < 0, 0.75, 0.6), view.shape[:2])[..., None]
    mixed: Pixels = (1 - opacity) * greyscale(view) + opacity * inks
    return mixed


def sets(view: Pixels, leading: Cells) -> Pixels:
    """Kept and merged sets: each set of patches in its mean colour, one that is a single patch as it is; dropped
    patches are white.

    Args:
        view: The image, (H, W, 3).
        leading: The set of each patch, from 0, (rows, columns); −1 where it is dropped.
    """  # noqa: D205
    of_pixels = enlarge(leading, view.shape[:2])
    shown = view.copy()
    shown[of_pixels < 0] = 0.12 * view[of_pixels < 0] + 0.88
    for number in np.unique(leading[leading >= 0]):
        if (leading == number).sum() > 1:
            inside = of_pixels == number
            shown[inside] = view[inside].mean(axis=0)
    return shown


def borders(leading: Cells, size: tuple[int, int]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The lines between patches of different tokens, each from (x, y) to (x, y), in pixels of the image."""
    rows, columns = leading.shape
    # The first pixel of each patch, as `enlarge` lays them out.
    top = [-(-row * size[0] // rows) - 0.5 for row in range(rows + 1)]
    left = [-(-column * size[1] // columns) - 0.5 for column in range(columns + 1)]
    lines = [
        ((left[column], top[row]), (left[column], top[row + 1]))
        for row in range(rows)
        for column in range(1, columns)
        if leading[row, column - 1] != leading[row, column]
    ]
    lines += [
        ((left[column], top[row]), (left[column + 1], top[row]))
        for row in range(1, rows)
        for column in range(columns)
        if leading[row - 1, column] != leading[row, column]
    ]
    return lines


def _blend(view: Pixels, strength: Cells, colours: str, opacity: Cells) -> Pixels:
    inks = mpl.colormaps[colours](strength)[..., :3]
    mixed: Pixels = (1 - opacity[..., None]) * greyscale(view) + opacity[..., None] * inks
    return mixed
