"""The pictures and the table of ``patchmerger show``: what each token takes, of an image, of several, of a dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.patheffects import withStroke
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from patchmerger.maps.measures import are_sets, leading_tokens, taken
from patchmerger.reports.map_pixels import (
    MAP_COLOURS,
    TAKEN_COLOURS,
    TAKEN_REACH,
    Cells,
    Pixels,
    borders,
    overlay,
    segmentation,
    sets,
    taken_overlay,
    token_colours,
)
from patchmerger.reports.numbers import counted
from patchmerger.reports.style import GREY, picture
from patchmerger.reports.tables import print_table, report_console

GRID_FILE = "grid.png"
STATISTICS_FILE = "statistics.png"

MOST_TOKENS = 16
"""Tokens that have a map of their own in a picture; of more, those that lead most patches have."""

_TILE = 1.9
_ROW = 4


def report_show(results: dict[str, Any], tensors: Mapping[str, Tensor], *, grid: bool = False) -> int:
    """Draw the pictures of ``patchmerger show`` into its folder, and print the table; the exit status is returned.

    Args:
        results: The content of its ``results.json``.
        tensors: Its maps and pixels.
        grid: One picture of all images, a row each, in the place of one picture an image.
    """
    folder = Path(results["folder"])
    written = []
    if results["images"] and grid:
        written.append(draw_grid(results, tensors, folder / GRID_FILE))
    elif results["images"]:
        for number, name in enumerate(picture_names(results)):
            written.append(draw_image(results, tensors, number, folder / name))
    if results["statistics"]:
        written.append(draw_statistics(results, tensors, folder / STATISTICS_FILE))
    return show_maps(results, written)


def picture_names(results: Mapping[str, Any]) -> list[str]:
    """A file name for the picture of each image: its own, without what no file name takes, and numbered if double."""
    names: list[str] = []
    for image in results["images"]:
        stem = re.sub(r"[^\w.-]+", "-", Path(image["name"]).stem) or "image"
        taken_names = {*names, GRID_FILE, STATISTICS_FILE}
        number = 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.png") in taken_names:
            number += 1
        names.append(name)
    return names


def show_maps(results: Mapping[str, Any], written: Sequence[Path]) -> int:
    """Print what each token takes, and where the pictures are; the exit status is 1 where an image cannot be read."""
    console = report_console()
    for place, merger in enumerate(results["mergers"]):
        for table in _tables(results, place, merger):
            print_table(console, table)
    for image in results["unread"]:
        console.print(f"[bold]not shown[/bold] {escape(image['name'])}: {escape(image['reason'])}", soft_wrap=True)
    console.print(
        "A token leads the patches of which it takes the most; unused: what next to nothing of is taken; patches: how "
        "many a token takes, by the entropy of its map.", soft_wrap=True,
    )  # fmt: skip
    for path in written:
        console.print(f"{path} (and .svg)", soft_wrap=True)
    return 1 if results["unread"] else 0


def _tables(results: Mapping[str, Any], place: int, merger: Mapping[str, Any]) -> list[Table]:
    count = merger["num_tokens"]
    tables = []
    statistics = results["statistics"][place] if results["statistics"] else None
    if statistics is not None and count <= MOST_TOKENS:
        table = Table(title=escape(_statistics_title(results, merger, statistics)), box=box.SIMPLE_HEAD)
        for column in ("token", "leads\n%", "patches", "alike from image\nto image"):
            table.add_column(column, justify="right", no_wrap=True)
        rows = zip(statistics["shares"], statistics["effective_patches"], statistics["steadiness"], strict=True)
        for number, (share, patches, steady) in enumerate(rows, start=1):
            table.add_row(str(number), f"{100 * share:.1f}", f"{patches:.1f}", f"{steady:.2f}")
        tables.append(table)
    if results["images"]:
        table = Table(title=escape(_merger_text(merger)), box=box.SIMPLE_HEAD)
        table.add_column("image", no_wrap=True)
        for column in ("class", "unused\n%", "patches\na token", "most led\nby a token, %"):
            table.add_column(column, justify="right", no_wrap=True)
        for image in results["images"]:
            found = image["mergers"][place]
            patches = found["effective_patches"]
            table.add_row(
                escape(Path(image["name"]).name), escape(image["label"] or "–"), f"{100 * found['unused']:.1f}",
                f"{sum(patches) / len(patches):.1f}", f"{100 * max(found['shares']):.1f}",
            )  # fmt: skip
        tables.append(table)
    return tables


def _merger_text(merger: Mapping[str, Any]) -> str:
    located = ", located queries" if merger["centers"] else ""
    return f"{merger['reducer']} after block {merger['after']}: {counted(merger['num_tokens'], 'token')}{located}"


def _statistics_title(results: Mapping[str, Any], merger: Mapping[str, Any], means: Mapping[str, Any]) -> str:
    alike = "" if means["similarity"] is None else f", cosine of two maps {means['similarity']:.2f}"
    return (
        f"{_merger_text(merger)}; mean over {means['images']:,} {results['settings']['split']} images: "
        f"rank {means['effective_rank']:.1f} of {merger['num_tokens']}{alike}, unused {100 * means['unused']:.1f}%"
    )


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
    title = f"{called}{Path(image['name']).name}: {_model_text(results)}"
    with picture(
        path, columns=_ROW, rows=sum(lines), note=_image_note(results, image), title=title,
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
    _show(panels[0], view, "what the model sees" if place == 0 else f"after block {merger['after']}")
    _dots(panels[0], results["images"][number]["places"], view)
    if found["sets"]:
        _show(panels[1], sets(view, leading), f"{_set_words(maps)}")
        _lines(panels[1], leading, view, "black", 0.8)
    else:
        _show(panels[1], segmentation(view, leading, colours), "who takes most of each patch")
        _lines(panels[1], leading, view, "white", 1.2)
        _hatch(panels[1], leading, view)
        _numbers(panels[1], leading, view)
    _show(panels[2], taken_overlay(view, amounts), f"taken; {100 * found['unused']:.0f}% unused")
    _scales(figure, panels[3], with_maps=not found["sets"])
    if found["sets"]:
        return
    for axes in panels[4 + len(tokens) :]:
        axes.set_axis_off()
    for axes, token in zip(panels[4:], tokens, strict=False):
        share, patches = found["shares"][token], found["effective_patches"][token]
        _show(axes, overlay(view, maps[token]), f"{token + 1}: leads {100 * share:.0f}%, takes {patches:.1f}")
        _frame(axes, colours[token])
        _place(axes, merger, view, token)


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
    colours = token_colours(merger["num_tokens"])
    columns = 2 + len(tokens)
    rows = len(results["images"])
    side = 1.1 if tokens else 2.4
    with picture(
        path, columns=columns, rows=rows, note=_grid_note(results, merger, tokens), title=_model_text(results),
        panel=(side, side), also_svg=True,
    ) as (figure, panels):  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr, call-arg]
        for number in range(rows):
            row = panels[number * columns : (number + 1) * columns]
            _grid_row(row, results, tensors, number, tokens, colours)
    return path


def _grid_row(
    row: Sequence[Axes],
    results: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    number: int,
    tokens: Sequence[int],
    colours: list[str],
) -> None:
    image, merger, top = results["images"][number], results["mergers"][-1], number == 0
    found = image["mergers"][-1]
    view, (maps, leading, _) = _view(tensors, number), _maps(tensors, number, merger["after"])
    _show(row[0], view, "image" if top else "", size=10)
    if image["label"]:
        row[0].set_ylabel(_short(image["label"]), fontsize=10)
    if found["sets"]:
        _show(row[1], sets(view, leading), _set_words(maps))
        _lines(row[1], leading, view, "black", 0.5)
    else:
        _show(row[1], segmentation(view, leading, colours), "led by" if top else "", size=10)
        _lines(row[1], leading, view, "white", 0.8)
        _hatch(row[1], leading, view)
        _numbers(row[1], leading, view, size=8.5)
    for axes, token in zip(row[2:], tokens, strict=True):
        _show(axes, overlay(view, maps[token]), f"token {token + 1}" if top else "", size=10)
        _frame(axes, colours[token], width=1.2)
        _corner(axes, f"{100 * found['shares'][token]:.0f}%")


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
        path, columns=1 + _ROW, rows=sum(lines), note=_statistics_note(results), title=_statistics_text(results),
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
    _bare(panels[0], f"taken; {100 * means['unused']:.0f}% unused")
    _scales(figure, panels[1 + _ROW], with_maps=True)
    left = [panels[line] for line in range(0, len(panels), 1 + _ROW)]
    right = [axes for axes in panels if axes not in left]
    for axes in (*left[2:], *right[len(tokens) :]):
        axes.set_axis_off()
    for axes, token in zip(right, tokens, strict=False):
        axes.imshow(maps[token], cmap=MAP_COLOURS, vmin=0)
        _bare(axes, f"{token + 1}: leads {100 * means['shares'][token]:.0f}%")
        _frame(axes, colours[token])
        _place(axes, merger, maps[token], token)


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


def _set_words(maps: Cells) -> str:
    sizes = (maps > 0).sum(axis=(1, 2))
    dropped = int((maps.sum(axis=0) == 0).sum())
    kept, merged = int((sizes == 1).sum()), int((sizes > 1).sum())
    words = [f"{kept} kept", f"{merged} merged" if merged else "", f"{dropped} dropped" if dropped else ""]
    return ", ".join(filter(None, words))


def _tile(height: int, width: int) -> tuple[float, float]:
    """Width and height of a panel for images of this shape, in inches, with room for its title."""
    return _TILE * min(1.6, max(0.7, width / height)), _TILE * min(1.6, max(0.7, height / width)) + 0.25


def _show(axes: Axes, pixels: Pixels, title: str, size: float = 8.5) -> None:
    axes.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
    _bare(axes, title, size)


def _short(label: str) -> str:
    """A class name that fits beside an image: the first of several that a comma parts."""
    first = label.split(",")[0]
    return first if len(first) <= 14 else f"{first[:12]}…"


def _bare(axes: Axes, title: str, size: float = 8.5) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=size, loc="left", pad=3)


def _frame(axes: Axes, colour: str, width: float = 2.0) -> None:
    axes.spines[:].set(visible=True, color=colour, linewidth=width)


def _corner(axes: Axes, text: str) -> None:
    axes.text(
        0.04, 0.04, text, transform=axes.transAxes, fontsize=8.5, color="white",
        path_effects=[withStroke(linewidth=1.8, foreground="black")],
    )  # fmt: skip


def _lines(axes: Axes, leading: Cells, view: Pixels, colour: str, width: float) -> None:
    axes.add_collection(LineCollection(borders(leading, view.shape[:2]), colors=colour, linewidths=width))


def _numbers(axes: Axes, leading: Cells, view: Pixels, size: float = 9) -> None:
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


def _hatch(axes: Axes, leading: Cells, view: Pixels) -> None:
    """White stripes over the patches that no token takes."""
    height, width = np.array(view.shape[:2]) / leading.shape
    for row, column in np.argwhere(leading < 0):
        corner = (column * width - 0.5, row * height - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, hatch="////", ec="#b0b0b0", lw=0))


def _place(axes: Axes, merger: Mapping[str, Any], view: Pixels, token: int) -> None:
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


def _dots(axes: Axes, places: Sequence[Sequence[float]] | None, view: Pixels) -> None:
    """Where tokens were placed, if they are no patches of a grid."""
    height, width = view.shape[:2]
    for row, column in places or ():
        axes.plot(column * width - 0.5, row * height - 0.5, "o", ms=3.5, mew=0.8, mfc="white", mec="black")


def _scales(figure: Figure, axes: Axes, *, with_maps: bool) -> None:
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


def _model_text(results: Mapping[str, Any]) -> str:
    height, width = results["image_size"]
    size = f"{height} pixels" if height == width else f"{height} × {width} pixels"
    mergers = "; then ".join(_merger_text(merger) for merger in results["mergers"])
    return f"{results['title']}, {size}, {mergers}"


def _statistics_text(results: Mapping[str, Any]) -> str:
    lines = [_model_text(results)]
    for merger, means in zip(results["mergers"], results["statistics"], strict=True):
        alike = "" if means["similarity"] is None else f", mean cosine of two maps {means['similarity']:.2f}"
        lines.append(
            f"after block {merger['after']}, mean over {means['images']:,} {results['settings']['split']} images: "
            f"effective rank {means['effective_rank']:.1f} of {merger['num_tokens']}{alike}"
        )
    return "\n".join(lines)


def _image_note(results: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    rows, columns = image["grid"]
    more = [m for m in results["mergers"] if m["num_tokens"] > MOST_TOKENS]
    lines = [f"{rows} × {columns} patches."]
    if not all(found["sets"] for found in image["mergers"]):
        lines.append(
            "Striped: patches that no token takes. “Leads”: the share of patches of which the token takes the most; "
            "“takes”: how many patches, by the entropy of its map."
        )
        if more:
            lines.append(f"The {MOST_TOKENS} tokens that lead most are drawn.")
    else:
        lines.append("Merged patches have the mean colour of their set; white ones are dropped.")
    lines.append(_places_text(results).strip())
    if image["places"] is not None:
        lines.append("Dots: where tokens were placed; each counts for the patches around it.")
    if len(results["mergers"]) > 1:
        lines.append("Later mergers are composed back to the patches.")
    return " ".join(filter(None, lines))


def _data_text(results: Mapping[str, Any]) -> str:
    """The images in words, where they are those of a dataset."""
    if results["data"] is None:
        return ""
    return f"{str(results['data']).split(':')[0]}, {results['settings']['split']} images. "


def _places_text(results: Mapping[str, Any]) -> str:
    if not any(merger["centers"] for merger in results["mergers"]):
        return ""
    return " + and ellipse: the learned place of a located query, and one width around it."


def _grid_note(results: Mapping[str, Any], merger: Mapping[str, Any], tokens: Sequence[int]) -> str:
    if not tokens:
        return "Merged patches have the mean colour of their set; white ones are dropped."
    some = f" The {MOST_TOKENS} tokens that lead most in the first image." if merger["num_tokens"] > MOST_TOKENS else ""
    return (
        f"{_data_text(results)}Light: the patches that go into a token; its percentage: the share of patches of which "
        f"it takes the most (“led by”). Striped: no token takes it.{some}"
    )


def _statistics_note(results: Mapping[str, Any]) -> str:
    return (
        f"{_data_text(results)}Each map has its own scale. “Leads”: the mean share of patches of which the token takes "
        f"the most.{_places_text(results)}"
    )
