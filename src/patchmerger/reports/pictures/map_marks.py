"""What is drawn on the panel of a merge map: borders, numbers, stripes, places of queries, frames, colour scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke

from patchmerger.reports.pictures.map_pixels import MAP_COLOURS, TAKEN_COLOURS, Cells, Pixels, borders
from patchmerger.reports.pictures.style import GREY


def show_pixels(axes: Axes, pixels: Pixels, title: str, size: float = 8.5) -> None:
    """An image in a panel, with no axes but a title."""
    axes.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
    bare(axes, title, size)


def bare(axes: Axes, title: str, size: float = 8.5) -> None:
    """No ticks and no frame, and a title at the left."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=size, loc="left", pad=3)


def frame(axes: Axes, colour: str, width: float = 2.0) -> None:
    """A frame in a token's colour."""
    axes.spines[:].set(visible=True, color=colour, linewidth=width)


def corner_text(axes: Axes, text: str) -> None:
    """Text in the lower left corner of the image."""
    axes.text(
        0.04, 0.04, text, transform=axes.transAxes, fontsize=8.5, color="white",
        path_effects=[withStroke(linewidth=1.8, foreground="black")],
    )  # fmt: skip


def border_lines(axes: Axes, leading: Cells, view: Pixels, colour: str, width: float) -> None:
    """Lines between the patches of one token and those of another."""
    axes.add_collection(LineCollection(borders(leading, view.shape[:2]), colors=colour, linewidths=width))


def token_numbers(axes: Axes, leading: Cells, view: Pixels, size: float = 9) -> None:
    """The number of each token on the patch of it that lies nearest to the middle of its patches."""
    scale = np.array(view.shape[:2]) / leading.shape
    for token in np.unique(leading[leading >= 0]):
        patches = np.argwhere(leading == token)
        middle = patches[np.square(patches - patches.mean(axis=0)).sum(axis=1).argmin()]
        y, x = (middle + 0.5) * scale - 0.5
        axes.text(
            x, y, str(token + 1), ha="center", va="center", fontsize=size, color="white", weight="bold",
            path_effects=[withStroke(linewidth=1.8, foreground="black")],
        )  # fmt: skip


def hatch_untaken(axes: Axes, leading: Cells, view: Pixels) -> None:
    """White stripes over the patches that no token takes."""
    height, width = np.array(view.shape[:2]) / leading.shape
    for row, column in np.argwhere(leading < 0):
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, hatch="////", ec="#b0b0b0", lw=0))


def query_place(axes: Axes, merger: Mapping[str, Any], view: Pixels, token: int) -> None:
    """Of a located query the centre, and an ellipse of one width around it."""
    if not merger["centers"]:
        return
    height, width = view.shape[:2]
    (row, column), (tall, wide) = merger["centers"][token], merger["widths"][token]
    x, y = column * width - 0.5, row * height - 0.5
    for colour, thick in (("black", 2.2), ("white", 1.0)):
        axes.add_patch(Ellipse((x, y), 2 * wide * width, 2 * tall * height, fill=False, ec=colour, lw=thick))
        axes.plot(x, y, "+", ms=5, mew=thick, color=colour)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def placed_dots(axes: Axes, places: Sequence[Sequence[float]] | None, view: Pixels, size: float = 3.5) -> None:
    """Where tokens were placed, if they are no patches of a grid."""
    height, width = view.shape[:2]
    for row, column in places or ():
        axes.plot(column * width - 0.5, row * height - 0.5, "o", ms=size, mew=size / 4.5, mfc="white", mec="black")


def colour_scales(figure: Figure, axes: Axes, *, with_maps: bool) -> None:
    """The colour scales, in a panel of their own."""
    axes.set_axis_off()
    places = [(0.08, TAKEN_COLOURS, ["0", "1", "2 and more"], "taken of a patch by all tokens:\n1 is an equal share")]
    if with_maps:
        places.append((0.52, MAP_COLOURS, ["0", "", "most"], "a token's weight on a patch,\nof its largest one"))
    for low, colours, labels, title in places:
        bar = axes.inset_axes((0.02, low + 0.16, 0.9, 0.07))
        figure.colorbar(
            ScalarMappable(Normalize(0, 2), colours), cax=bar, orientation="horizontal", ticks=[0, 1, 2]
        ).outline.set_visible(False)
        bar.set_xticklabels(labels, fontsize=7)
        bar.tick_params(length=2)
        bar.set_title(title, fontsize=7.5, loc="left", color=GREY, pad=2)
