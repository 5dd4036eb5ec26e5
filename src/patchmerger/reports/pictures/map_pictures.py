"""The pictures of merge maps: of one image, of several in a grid, of the means over a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from patchmerger.maps.measures import are_sets, leading_tokens, taken
from patchmerger.reports.pictures.map_captions import (
    MOST_TOKENS,
    grid_note,
    image_note,
    model_text,
    set_sizes,
    short_label,
    statistics_note,
    statistics_text,
)
from patchmerger.reports.pictures.map_marks import (
    bare,
    border_lines,
    colour_scales,
    corner_text,
    frame,
    hatch_untaken,
    placed_dots,
    query_place,
    show_pixels,
    token_numbers,
)
from patchmerger.reports.pictures.map_pixels import (
    MAP_COLOURS,
    TAKEN_COLOURS,
    TAKEN_REACH,
    Cells,
    Pixels,
    overlay,
    segmentation,
    sets,
    taken_overlay,
    token_colours,
)
from patchmerger.reports.pictures.style import picture

_TILE = 1.9
_ROW = 4


def draw_image(results: Mapping[str, Any], tensors: Mapping[str, Tensor], number: int, path: Path) -> Path:
    """Draw one image: what the model sees, the token that leads each patch, what is taken of each, and every map.

    Several mergers stand below each other, each composed back to the patches.

    Args:
        results: The content of ``results.json``.
        tensors: The maps and pixels.
        number: Which of its images.
        path: The PNG; an SVG is written beside it.
    """
    image = results["images"][number]
    view = _view(tensors, number)
    chosen = [_chosen_tokens(found) for found in image["mergers"]]
    lines = [
        1 + (0 if found["sets"] else -(-len(tokens) // _ROW))
        for tokens, found in zip(chosen, image["mergers"], strict=True)
    ]
    called = f"{image['label']}, " if image["label"] else ""
    title = f"{called}{Path(image['name']).name}: {model_text(results)}"
    with picture(
        path, columns=_ROW, rows=sum(lines), note=image_note(results, image), title=title,
        panel=_tile(*view.shape[:2]), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        first = 0
        for place, (tokens, line) in enumerate(zip(chosen, lines, strict=True)):
            _draw_merger(figure, panels[first : first + _ROW * line], results, tensors, number, place, tokens)
            first += _ROW * line
    return path


def _draw_merger(
    figure: Figure,
    panels: Sequence[Axes],
    results: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    number: int,
    place: int,
    tokens: Sequence[int],
) -> None:
    merger, found = results["mergers"][place], results["images"][number]["mergers"][place]
    view, (maps, leading, amounts) = _view(tensors, number), _maps(tensors, number, merger["after"])
    colours = token_colours(len(maps))
    show_pixels(panels[0], view, "what the model sees" if place == 0 else f"after block {merger['after']}")
    placed_dots(panels[0], results["images"][number]["places"], view)
    if found["sets"]:
        show_pixels(panels[1], sets(view, leading), f"{set_sizes(maps)}")
        border_lines(panels[1], leading, view, "black", 0.8)
    else:
        show_pixels(panels[1], segmentation(view, leading, colours), "token that takes most")
        border_lines(panels[1], leading, view, "white", 1.2)
        hatch_untaken(panels[1], leading, view)
        token_numbers(panels[1], leading, view)
    show_pixels(panels[2], taken_overlay(view, amounts), f"taken; {100 * found['unused']:.0f}% unused")
    colour_scales(figure, panels[3], with_maps=not found["sets"])
    if found["sets"]:
        return
    for axes in panels[4 + len(tokens) :]:
        axes.set_axis_off()
    for axes, token in zip(panels[4:], tokens, strict=False):
        share, patches = found["shares"][token], found["effective_patches"][token]
        show_pixels(axes, overlay(view, maps[token]), f"{token + 1}: leads {100 * share:.0f}%, takes {patches:.1f}")
        frame(axes, colours[token])
        query_place(axes, merger, view, token)


def draw_grid(results: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Path:
    """Draw several images, a row each: the image, who leads each patch, and the map of each token, a column each.

    Of several mergers it shows the last, composed back to the patches.

    Args:
        results: The content of ``results.json``.
        tensors: The maps and pixels.
        path: The PNG; an SVG is written beside it.
    """
    place, merger = len(results["mergers"]) - 1, results["mergers"][-1]
    tokens = _chosen_tokens(results["images"][0]["mergers"][place])
    if all(image["mergers"][place]["sets"] for image in results["images"]):
        tokens = []
    columns = 2 + len(tokens)
    rows = len(results["images"])
    side = 1.1 if tokens else 2.4
    with picture(
        path, columns=columns, rows=rows, note=grid_note(results, merger, tokens), title=model_text(results),
        panel=(side, side), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr, call-arg]
        draw_rows(panels, results, tensors, range(rows), tokens)
    return path


def draw_rows(
    panels: Sequence[Axes],
    results: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    images: Sequence[int],
    tokens: Sequence[int],
) -> None:
    """Draw some images, a row each, into panels: the image, who leads each patch, and the map of each token.

    Args:
        panels: 2 + the number of tokens for each image, row by row.
        results: The content of ``results.json``.
        tensors: The maps and pixels.
        images: Their numbers, from 0.
        tokens: Theirs, from 0.
    """
    columns = 2 + len(tokens)
    for line, number in enumerate(images):
        _grid_row(panels[line * columns : (line + 1) * columns], results, tensors, number, tokens, line == 0)


def _grid_row(
    row: Sequence[Axes],
    results: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    number: int,
    tokens: Sequence[int],
    top: bool,
) -> None:
    image, merger = results["images"][number], results["mergers"][-1]
    colours = token_colours(merger["num_tokens"])
    found = image["mergers"][-1]
    view, (maps, leading, _) = _view(tensors, number), _maps(tensors, number, merger["after"])
    show_pixels(row[0], view, "image" if top else "", size=10)
    placed_dots(row[0], image["places"], view, size=1.8)
    row[0].set_ylabel(short_label(image["label"] or Path(image["name"]).stem), fontsize=10)
    if found["sets"]:
        show_pixels(row[1], sets(view, leading), set_sizes(maps))
        border_lines(row[1], leading, view, "black", 0.5)
    else:
        show_pixels(row[1], segmentation(view, leading, colours), "led by" if top else "", size=10)
        border_lines(row[1], leading, view, "white", 0.8)
        hatch_untaken(row[1], leading, view)
        token_numbers(row[1], leading, view, size=8.5)
    for axes, token in zip(row[2:], tokens, strict=True):
        show_pixels(axes, overlay(view, maps[token]), f"token {token + 1}" if top else "", size=10)
        frame(axes, colours[token], width=1.2)
        corner_text(axes, f"{100 * found['shares'][token]:.0f}%")


def draw_statistics(results: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Path:
    """Draw the mean map of each token over a dataset, and what is taken of each place on average.

    Args:
        results: The content of ``results.json``.
        tensors: The maps.
        path: The PNG; an SVG is written beside it.
    """
    mergers = results["mergers"]
    tokens = [_chosen_tokens(means) for means in results["statistics"]]
    lines = [max(2, -(-len(each) // _ROW)) for each in tokens]
    grid = tensors[f"statistics.{mergers[0]['after']}.mean_taken"].shape
    with picture(
        path, columns=1 + _ROW, rows=sum(lines), note=statistics_note(results), title=statistics_text(results),
        panel=_tile(*grid), also_svg=True,
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
    results: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    place: int,
    tokens: Sequence[int],
) -> None:
    """One merger: on the left what all tokens take, and the scales; beside them the tokens, some in a line."""
    merger, means = results["mergers"][place], results["statistics"][place]
    maps = tensors[f"statistics.{merger['after']}.mean_maps"].numpy()
    amounts = tensors[f"statistics.{merger['after']}.mean_taken"].numpy()
    colours = token_colours(len(maps))
    panels[0].imshow(amounts, cmap=TAKEN_COLOURS, vmin=0, vmax=TAKEN_REACH)
    bare(panels[0], f"taken; {100 * means['unused']:.0f}% unused")
    colour_scales(figure, panels[1 + _ROW], with_maps=True)
    left = [panels[line] for line in range(0, len(panels), 1 + _ROW)]
    right = [axes for axes in panels if axes not in left]
    for axes in (*left[2:], *right[len(tokens) :]):
        axes.set_axis_off()
    for axes, token in zip(right, tokens, strict=False):
        axes.imshow(maps[token], cmap=MAP_COLOURS, vmin=0)
        bare(axes, f"{token + 1}: leads {100 * means['shares'][token]:.0f}%")
        frame(axes, colours[token])
        query_place(axes, merger, maps[token], token)


def _view(tensors: Mapping[str, Tensor], number: int) -> Pixels:
    view: Pixels = tensors[f"images.{number}.view"].permute(1, 2, 0).double().numpy() / 255
    return view


def _maps(tensors: Mapping[str, Tensor], number: int, after: int) -> tuple[Cells, Cells, Cells]:
    """The maps (M, rows, columns), the token that leads each patch, and what is taken of it."""
    maps, is_patch = (tensors[f"images.{number}.{after}.{name}"][None] for name in ("maps", "is_patch"))
    leading = leading_tokens(maps, is_patch)
    if are_sets(maps):  # however little of each a mean over many takes, it is in the set
        leading = maps.argmax(dim=1).masked_fill(maps.sum(dim=1) == 0, -1)
    return maps[0].numpy(), leading[0].numpy(), taken(maps, is_patch)[0].numpy()


def _chosen_tokens(found: Mapping[str, Any]) -> list[int]:
    """The tokens that are drawn: all or, of many, those that lead most, in their order."""
    ranked = sorted(range(len(found["shares"])), key=lambda token: -found["shares"][token])
    return sorted(ranked[:MOST_TOKENS])


def _tile(height: int, width: int) -> tuple[float, float]:
    """Width and height of a panel for images of this shape, in inches, with space for its title."""
    return _TILE * min(1.6, max(0.7, width / height)), _TILE * min(1.6, max(0.7, height / width)) + 0.25
