"""The report of ``patchmerger show``: its pictures, written, and the tables of what each token takes, printed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from patchmerger.reports.map_captions import MOST_TOKENS, merger_text
from patchmerger.reports.map_pictures import draw_grid, draw_image, draw_statistics
from patchmerger.reports.tables import print_table, report_console

GRID_FILE = "grid.png"
STATISTICS_FILE = "statistics.png"


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
        table = Table(title=escape(merger_text(merger)), box=box.SIMPLE_HEAD)
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


def _statistics_title(results: Mapping[str, Any], merger: Mapping[str, Any], means: Mapping[str, Any]) -> str:
    alike = "" if means["similarity"] is None else f", cosine of two maps {means['similarity']:.2f}"
    return (
        f"{merger_text(merger)}; mean over {means['images']:,} {results['settings']['split']} images: "
        f"rank {means['effective_rank']:.1f} of {merger['num_tokens']}{alike}, unused {100 * means['unused']:.1f}%"
    )
