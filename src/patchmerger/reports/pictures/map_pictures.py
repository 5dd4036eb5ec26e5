"""The pictures of merge maps: of one image, of several in a grid, of the means over a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from patchmerger.maps.measures import are_sets, leading_tokens, taken
from patchmerger.reports.pictures import map_captions as captions
from patchmerger.reports.pictures import map_marks as marks
from patchmerger.reports.pictures import map_pixels as pixels
from patchmerger.reports.pictures.map_pixels import Cells, Pixels
from patchmerger.reports.pictures.style import picture

Results = Mapping[str, Any]
Tensors = Mapping[str, Tensor]

_TILE = 1.9
_ROW = 4


@dataclass(frozen=True)
class _Seen:
    """What one merger does to one image.

    Attributes:
        merger: The merger, as results describe it.
        found: What its tokens take of the image, likewise.
        places: Where tokens were placed, if they are no patches of a grid.
        view: The image.
        maps: The map of each token, (M, rows, columns).
        leading: The token that leads each patch, (rows, columns).
        amounts: What is taken of each patch, (rows, columns).
    """

    merger: Results
    found: Results
    places: Sequence[Sequence[float]] | None
    view: Pixels
    maps: Cells
    leading: Cells
    amounts: Cells

    @classmethod
    def read(cls, results: Results, tensors: Tensors, number: int, place: int) -> _Seen:
        """That of an image and a merger, by their numbers."""
        image, merger = results["images"][number], results["mergers"][place]
        maps, is_patch = (tensors[f"images.{number}.{merger['after']}.{name}"][None] for name in ("maps", "is_patch"))
        leading = leading_tokens(maps, is_patch)
        if are_sets(maps):  # however little of each a mean over many takes, it is in the set
            leading = maps.argmax(dim=1).masked_fill(maps.sum(dim=1) == 0, -1)
        view: Pixels = tensors[f"images.{number}.view"].permute(1, 2, 0).double().numpy() / 255
        amounts = taken(maps, is_patch)[0].numpy()
        return cls(merger, image["mergers"][place], image["places"], view, maps[0].numpy(), leading[0].numpy(), amounts)

    @property
    def colours(self) -> list[str]:
        """Those of its tokens."""
        return pixels.token_colours(len(self.maps))

    def draw_image(self, axes: Axes, title: str, *, size: float = 8.5, dots: float = 3.5) -> None:
        """The image, with the places of tokens."""
        marks.show_pixels(axes, self.view, title, size)
        marks.placed_dots(axes, self.places, self.view, dots)

    def draw_leading(self, axes: Axes, title: str, *, size: float = 8.5, numbers: float = 9, line: float = 1.2) -> None:
        """The token that leads each patch, or the sets of patches that are kept and merged."""
        if self.found["sets"]:
            marks.show_pixels(axes, pixels.sets(self.view, self.leading), captions.set_sizes(self.maps))
            marks.border_lines(axes, self.leading, self.view, "black", line / 1.5)
        else:
            marks.show_pixels(axes, pixels.segmentation(self.view, self.leading, self.colours), title, size)
            marks.border_lines(axes, self.leading, self.view, "white", line)
            marks.hatch_untaken(axes, self.leading, self.view)
            marks.token_numbers(axes, self.leading, self.view, numbers)

    def draw_token(self, axes: Axes, token: int, title: str, *, size: float = 8.5, width: float = 2.0) -> None:
        """The map of one token."""
        marks.show_pixels(axes, pixels.overlay(self.view, self.maps[token]), title, size)
        marks.frame(axes, self.colours[token], width)


def draw_image(results: Results, tensors: Tensors, number: int, path: Path) -> Path:
    """Draw one image: what the model sees, the token that leads each patch, what is taken of each, and every map.

    Several mergers stand below each other, each composed back to the patches. An SVG is written beside the PNG.
    """
    image = results["images"][number]
    every = [_Seen.read(results, tensors, number, place) for place in range(len(results["mergers"]))]
    chosen = [[] if seen.found["sets"] else _chosen_tokens(seen.found) for seen in every]
    lines = [1 + -(-len(tokens) // _ROW) for tokens in chosen]
    called = f"{image['label']}, " if image["label"] else ""
    title = f"{called}{Path(image['name']).name}: {captions.model_text(results)}"
    with picture(
        path, columns=_ROW, rows=sum(lines), note=captions.image_note(results, image), title=title,
        panel=_tile(*every[0].view.shape[:2]), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        for place, (seen, tokens, line) in enumerate(zip(every, chosen, lines, strict=True)):
            mine, panels = panels[: _ROW * line], panels[_ROW * line :]
            seen.draw_image(mine[0], f"after block {seen.merger['after']}" if place else "what the model sees")
            _draw_merger(figure, mine[1:], seen, tokens)
    return path


def _draw_merger(figure: Figure, panels: Sequence[Axes], seen: _Seen, tokens: Sequence[int]) -> None:
    seen.draw_leading(panels[0], "token that takes most")
    taken_title = f"taken; {100 * seen.found['unused']:.0f}% unused"
    marks.show_pixels(panels[1], pixels.taken_overlay(seen.view, seen.amounts), taken_title)
    marks.colour_scales(figure, panels[2], with_maps=not seen.found["sets"])
    for axes in panels[3 + len(tokens) :]:
        axes.set_axis_off()
    for axes, token in zip(panels[3:], tokens, strict=False):
        share, patches = seen.found["shares"][token], seen.found["effective_patches"][token]
        seen.draw_token(axes, token, f"{token + 1}: leads {100 * share:.0f}%, takes {patches:.1f}")
        marks.query_place(axes, seen.merger, seen.view, token)


def draw_grid(results: Results, tensors: Tensors, path: Path) -> Path:
    """Draw several images, a row each: the image, who leads each patch, and the map of each token, a column each.

    Of several mergers it shows the last, composed back to the patches. An SVG is written beside the PNG.
    """
    found = [image["mergers"][-1] for image in results["images"]]
    tokens = [] if all(each["sets"] for each in found) else _chosen_tokens(found[0])
    note, side = captions.grid_note(results, results["mergers"][-1], tokens), 1.1 if tokens else 2.4
    with picture(
        path, columns=2 + len(tokens), rows=len(found), note=note, title=captions.model_text(results),
        panel=(side, side), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr, call-arg]
        draw_rows(panels, results, tensors, range(len(found)), tokens)
    return path


def draw_rows(
    panels: Sequence[Axes], results: Results, tensors: Tensors, images: Sequence[int], tokens: Sequence[int]
) -> None:
    """Draw some images, a row each, into panels: the image, who leads each patch, and the map of each token.

    There are 2 + the number of tokens panels for each image, row by row; images and tokens are numbers from 0.
    """
    columns = 2 + len(tokens)
    for line, number in enumerate(images):
        row, image, top = panels[line * columns : (line + 1) * columns], results["images"][number], line == 0
        seen = _Seen.read(results, tensors, number, -1)
        seen.draw_image(row[0], "image" if top else "", size=10, dots=1.8)
        row[0].set_ylabel(captions.short_label(image["label"] or Path(image["name"]).stem), fontsize=10)
        seen.draw_leading(row[1], "led by" if top else "", size=10, numbers=8.5, line=0.8)
        for axes, token in zip(row[2:], tokens, strict=True):
            seen.draw_token(axes, token, f"token {token + 1}" if top else "", size=10, width=1.2)
            marks.corner_text(axes, f"{100 * seen.found['shares'][token]:.0f}%")


def draw_statistics(results: Results, tensors: Tensors, path: Path) -> Path:
    """Draw the mean map of each token over a dataset, and what is taken of each place, as a PNG and an SVG."""
    mergers = results["mergers"]
    tokens = [_chosen_tokens(means) for means in results["statistics"]]
    lines = [max(2, -(-len(each) // _ROW)) for each in tokens]
    grid = tensors[f"statistics.{mergers[0]['after']}.mean_taken"].shape
    with picture(
        path, columns=1 + _ROW, rows=sum(lines), note=captions.statistics_note(results),
        title=captions.statistics_text(results), panel=_tile(*grid), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        first = 0
        for place, (chosen, line) in enumerate(zip(tokens, lines, strict=True)):
            mine = panels[first : first + (1 + _ROW) * line]
            _draw_means(figure, mine, results, tensors, place, chosen)
            first += len(mine)
    return path


def _draw_means(
    figure: Figure,
    panels: Sequence[Axes],
    results: Results,
    tensors: Tensors,
    place: int,
    tokens: Sequence[int],
) -> None:
    """One merger: on the left what all tokens take, and the scales; beside them the tokens, some in a line."""
    merger, means = results["mergers"][place], results["statistics"][place]
    maps = tensors[f"statistics.{merger['after']}.mean_maps"].numpy()
    amounts = tensors[f"statistics.{merger['after']}.mean_taken"].numpy()
    colours = pixels.token_colours(len(maps))
    panels[0].imshow(amounts, cmap=pixels.TAKEN_COLOURS, vmin=0, vmax=pixels.TAKEN_REACH)
    marks.bare(panels[0], f"taken; {100 * means['unused']:.0f}% unused")
    marks.colour_scales(figure, panels[1 + _ROW], with_maps=True)
    left = [panels[line] for line in range(0, len(panels), 1 + _ROW)]
    right = [axes for axes in panels if axes not in left]
    for axes in (*left[2:], *right[len(tokens) :]):
        axes.set_axis_off()
    for axes, token in zip(right, tokens, strict=False):
        axes.imshow(maps[token], cmap=pixels.MAP_COLOURS, vmin=0)
        marks.bare(axes, f"{token + 1}: leads {100 * means['shares'][token]:.0f}%")
        marks.frame(axes, colours[token])
        marks.query_place(axes, merger, maps[token], token)


def _chosen_tokens(found: Results) -> list[int]:
    """The tokens that are drawn: all or, of many, those that lead most, in their order."""
    ranked = sorted(range(len(found["shares"])), key=lambda token: -found["shares"][token])
    return sorted(ranked[: captions.MOST_TOKENS])


def _tile(height: int, width: int) -> tuple[float, float]:
    """Width and height of a panel for images of this shape, in inches, with space for its title."""
    return _TILE * min(1.6, max(0.7, width / height)), _TILE * min(1.6, max(0.7, height / width)) + 0.25
