"""What ``patchmerger show`` shows: which patches go into which token, in pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from patchmerger.maps.picture_files import GRID_FILE, STATISTICS_FILE, picture_names
from patchmerger.reports.parts import cells, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures.map_captions import MOST_TOKENS, means_text, merger_text

if TYPE_CHECKING:
    from torch import Tensor

_MOST_PICTURES = 12
_LEGEND = (
    "A token leads the patches of which it takes the most; unused: what next to nothing of is taken; patches: how many "
    "a token takes, by the entropy of its map."
)


def report(results: Results, tensors: Mapping[str, Tensor], *, grid: bool = False) -> int:
    """Draw the pictures of ``patchmerger show`` into its folder, and print the tables; 1 where an image cannot be read.

    ``grid`` draws one picture of all images, a row each, in the place of one picture an image.
    """
    from patchmerger.reports.pictures.map_pictures import draw_grid, draw_image, draw_statistics

    folder, written = Path(results["folder"]), []
    if results["images"] and grid:
        written.append(draw_grid(results, tensors, folder / GRID_FILE))
    elif results["images"]:
        for number, name in enumerate(picture_names(results)):
            written.append(draw_image(results, tensors, number, folder / name))
    if results["statistics"]:
        written.append(draw_statistics(results, tensors, folder / STATISTICS_FILE))
    console = report_console()
    for table in (*token_tables(results), *image_tables(results)):
        print_table(console, table)
    for image in results["unread"]:
        console.print(f"[bold]not shown[/bold] {escape(image['name'])}: {escape(image['reason'])}", soft_wrap=True)
    print_notes(console, _LEGEND, *(f"{path} (and .svg)" for path in written))
    return 1 if results["unread"] else 0


def token_tables(results: Results) -> list[Table]:
    """For each merger, if it has few tokens, a row for each of them: the means over a dataset."""
    tables = []
    for merger, means in zip(results["mergers"], results.get("statistics") or (), strict=False):
        each = zip(means["shares"], means["effective_patches"], means["steadiness"], strict=True)
        rows = [
            [cells.number(token, ".0f"), cells.percent(share, 1), cells.number(patches, ".1f"), cells.number(steady)]
            for token, (share, patches, steady) in enumerate(each, start=1)
        ]
        columns = ["token", "leads, %\nof patches", "patches\nit takes", "alike from\nimage to image"]
        if len(rows) <= MOST_TOKENS:
            tables.append(Table(means_text(results, merger, means), columns, rows, _LEGEND))
    return tables


def image_tables(results: Results) -> list[Table]:
    """For each merger a row for each image."""
    tables = []
    for place, merger in enumerate(results["mergers"]):
        rows = []
        for image in results["images"]:
            found = image["mergers"][place]
            patches = sum(found["effective_patches"]) / len(found["effective_patches"])
            rows.append([
                Cell(Path(image["name"]).name), Cell(image["label"] or "–"), cells.percent(found["unused"], 1),
                cells.number(patches, ".1f"), cells.percent(max(found["shares"]), 1),
            ])  # fmt: skip
        columns = ["image", "class", "unused,\n%", "patches\na token", "most led\nby a token, %"]
        if rows:
            tables.append(Table(merger_text(merger), columns, rows))
    return tables


def describe(section: Section, results: Results) -> None:
    """Fill a section with merge maps: the pictures in a folder, or that beside a file, and what each token takes."""
    path = Path(section.origin)
    section.title = section.attempt(
        "title", lambda: f"What {numbers.model_name(results['model'])} merges", "Merge maps"
    )
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: _figures(results))
    none: list[str] = []
    names = [GRID_FILE, STATISTICS_FILE, *sorted(section.attempt("pictures", lambda: picture_names(results), none))]
    drawn = [path / name for name in names] if path.is_dir() else [path.with_suffix(".png")]
    files = [file for file in drawn if file.is_file()]
    section.pictures += [_picture(file, not path.is_dir()) for file in files[:_MOST_PICTURES]]
    if not files:
        there = f"there are no pictures in {path}" if path.is_dir() else f"{path.with_suffix('.png')} is not there"
        section.missing.append(f"merge maps ({there})")
    if len(files) > _MOST_PICTURES:
        section.missing.append(f"{len(files) - _MOST_PICTURES} further pictures (they are in {path})")
    section.add(section.tables, "table of tokens", lambda: token_tables(results))
    section.add(section.tables, "table of images", lambda: image_tables(results))
    section.missing += [f"{image['name']} ({image['reason']})" for image in results.get("unread") or ()]


def _verdict(results: Results) -> str:
    places = numbers.merges_text(results["mergers"])
    if statistics := results.get("statistics"):
        last = statistics[-1]
        return (
            f"Over {last['images']:,} images, {places} make **{last['effective_rank']:.1f} different mixtures** of the "
            f"patches and leave **{100 * last['unused']:.1f}% of them unused**."
        )
    unused = [image["mergers"][-1]["unused"] for image in results["images"]]
    mean = 100 * sum(unused) / len(unused)
    return f"On {numbers.counted(len(unused), 'image')}, {places} leave **{mean:.1f}% of the patches unused**."


def _figures(results: Results) -> list[figures.Figure]:
    last = results["mergers"][-1]
    found = [figures.Figure(str(last["num_tokens"]), f"tokens after block {last['after']}")]
    if statistics := results.get("statistics"):
        patches = statistics[-1]["effective_patches"]
        found += [
            figures.Figure(f"{statistics[-1]['effective_rank']:.1f}", "different mixtures of patches"),
            figures.Figure(f"{sum(patches) / len(patches):.1f}", "patches a token takes, mean"),
            figures.Figure(f"{100 * statistics[-1]['unused']:.1f}%", "of patches unused"),
        ]
    return found


def _picture(file: Path, alone: bool) -> figures.Picture:
    words = {GRID_FILE: "a row an image, a column a token", STATISTICS_FILE: "the mean map of each token"}
    text = words.get(file.name, words[GRID_FILE] if alone else f"of {file.stem}")
    return figures.Picture.read(file, f"Merge maps, {text}")
