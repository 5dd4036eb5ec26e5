"""``patchmerger show``: which patches go into which token, in pictures."""

from __future__ import annotations

import base64
from pathlib import Path

from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Figure, Picture, Section, Table
from patchmerger.reports.numbers import counted, model_name

_MOST_PICTURES = 12
_FIRST = ("grid.png", "statistics.png")


def describe(section: Section, results: Results, path: Path) -> None:
    """Fill a section with merge maps: the pictures in a folder, or that beside a file, and what each token takes."""
    section.title = section.attempt("title", lambda: f"What {model_name(results['model'])} merges", "Merge maps")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    drawn = path.glob("*.png") if path.is_dir() else filter(Path.is_file, [path.with_suffix(".png")])
    files = sorted(drawn, key=lambda file: (file.name not in _FIRST, file.name))
    section.pictures += [_picture(file, not path.is_dir()) for file in files[:_MOST_PICTURES]]
    if not files:
        section.missing.append(
            f"merge maps (there are no pictures in {path})"
            if path.is_dir()
            else f"merge maps ({path.with_suffix('.png')} is not there)"
        )
    if len(files) > _MOST_PICTURES:
        section.missing.append(f"{len(files) - _MOST_PICTURES} further pictures (they are in {path})")
    section.tables += section.attempt("table of tokens", lambda: _tokens(results), [])
    section.tables += section.attempt("table of images", lambda: _images(results), [])
    for image in results.get("unread") or ():
        section.missing.append(f"{image['name']} ({image['reason']})")


def _verdict(results: Results) -> str:
    places = " and ".join(f"{m['num_tokens']} tokens after block {m['after']}" for m in results["mergers"])
    if statistics := results.get("statistics"):
        last = statistics[-1]
        return (
            f"Over {last['images']:,} images, {places} make **{last['effective_rank']:.1f} different mixtures** of the "
            f"patches and leave **{100 * last['unused']:.1f}% of them unused**."
        )
    unused = [image["mergers"][-1]["unused"] for image in results["images"]]
    return (
        f"On {counted(len(unused), 'image')}, {places} leave **{100 * sum(unused) / len(unused):.1f}% of the patches "
        "unused**."
    )


def _figures(results: Results) -> list[Figure]:
    last = results["mergers"][-1]
    figures = [Figure(str(last["num_tokens"]), f"tokens after block {last['after']}")]
    if statistics := results.get("statistics"):
        patches = statistics[-1]["effective_patches"]
        figures.append(Figure(f"{statistics[-1]['effective_rank']:.1f}", "different mixtures of patches"))
        figures.append(Figure(f"{sum(patches) / len(patches):.1f}", "patches a token takes, mean"))
        figures.append(Figure(f"{100 * statistics[-1]['unused']:.1f}%", "of patches unused"))
    return figures


def _picture(file: Path, alone: bool) -> Picture:
    words = {"grid.png": "a row an image, a column a token", "statistics.png": "the mean map of each token"}
    text = f"Merge maps, {words.get(file.name, words['grid.png'] if alone else f'of {file.stem}')}"
    return Picture(f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}", text)


def _tokens(results: Results) -> list[Table]:
    tables = []
    for merger, found in zip(results["mergers"], results.get("statistics") or (), strict=False):
        each = zip(found["shares"], found["effective_patches"], found["steadiness"], strict=True)
        rows = [
            [Cell(str(number), number), *(Cell(f"{value:.2f}", value) for value in (100 * share, patches, steady))]
            for number, (share, patches, steady) in enumerate(each, start=1)
        ]
        caption = f"Tokens after block {merger['after']}, mean over {found['images']:,} images"
        columns = ["token", "leads, % of patches", "patches it takes", "alike from image to image"]
        tables.append(Table(caption, columns, rows, "A token leads the patches of which it takes the most."))
    return tables


def _images(results: Results) -> list[Table]:
    rows = []
    for image in results["images"]:
        found = image["mergers"][-1]
        patches = sum(found["effective_patches"]) / len(found["effective_patches"])
        rows.append([
            Cell(Path(image["name"]).name), Cell(image["label"] or "–"),
            Cell(f"{100 * found['unused']:.1f}", found["unused"]), Cell(f"{patches:.1f}", patches),
            Cell(f"{100 * max(found['shares']):.1f}", max(found["shares"])),
        ])  # fmt: skip
    columns = ["image", "class", "unused, %", "patches a token takes", "most led by a token, %"]
    return [Table("Images", columns, rows)] if rows else []
