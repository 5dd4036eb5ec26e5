"""The first picture of the README, from committed results: merge maps beside accuracy against FLOPs saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.parts.numbers import counted, model_text
from patchmerger.reports.pictures.accelerate_study import draw_accuracies, method_handles, recoveries
from patchmerger.reports.pictures.map_pictures import draw_rows
from patchmerger.reports.pictures.style import head, picture
from patchmerger.runs.files import read_json
from patchmerger.runs.tensors import read_tensors

FILE, MAPS, STUDY = "overview.png", "merge-maps-cifar10.json", "accelerate-all-vit-small-cifar10.json"
_IMAGES, _TOKENS, _WIDTH, _SIDE = 4, 4, 5, 1.0


def draw_overview(folder: Path) -> Path:
    """Draw it beside the results; its path is returned.

    Args:
        folder: That of the results.
    """
    maps, study = read_json(folder / MAPS), read_json(folder / STUDY)
    shown = range(min(_IMAGES, len(maps["images"])))
    tokens = _chosen(maps, shown)
    columns, path = 2 + len(tokens), folder / FILE
    with picture(
        path, columns=columns + _WIDTH, rows=len(shown), note=_note(maps, study), panel=(_SIDE, _SIDE)
    ) as (figure, panels):  # fmt: skip
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr, call-arg]
        grid = panels[0].get_gridspec()
        lines = [panels[line * (columns + _WIDTH) : (line + 1) * (columns + _WIDTH)] for line in range(len(shown))]
        for axes in (axes for line in lines for axes in line[columns:]):
            axes.remove()
        draw_rows(
            [axes for line in lines for axes in line[:columns]], maps, read_tensors(_tensors(folder)), shown, tokens
        )
        axes = figure.add_subplot(grid[:, columns:])  # type: ignore[index]
        draw_accuracies(axes, study, recoveries(study)[-1], by="predicted_speedup")
        axes.set_ylabel("test accuracy, %")
        head(axes, "Accuracy after a short recovery")
        handles, labels = method_handles([m for m in study["settings"]["methods"] if m != "plain"])
        axes.legend(handles, labels, fontsize=8.5, frameon=False, loc="best", handletextpad=0.5, labelspacing=0.3)
    return path


def _tensors(folder: Path) -> Path:
    return (folder / MAPS).with_suffix(".safetensors")


def _chosen(maps: Mapping[str, Any], images: Sequence[int]) -> list[int]:
    """The tokens nearest to the middle of the images, where what they show is; without places those that lead most."""
    if centers := maps["mergers"][-1]["centers"]:
        order = [(row - 0.5) ** 2 + (column - 0.5) ** 2 for row, column in centers]
    else:
        shares = [maps["images"][number]["mergers"][-1]["shares"] for number in images]
        order = [-sum(column) for column in zip(*shares, strict=True)]
    return sorted(sorted(range(len(order)), key=order.__getitem__)[:_TOKENS])


def _note(maps: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    merger, models = maps["mergers"][-1], counted(len(study["models"]), "plain model")
    data = study["data"].split(":")[0]
    return (
        f"Left: {maps['model']}, {merger['num_tokens']} tokens after block {merger['after']}. Light: the patches that "
        "go into a token; led by: the token\nthat takes most of each patch; striped: next to nothing of it is taken. "
        f"Right: {models} ({model_text(study['model'])})\non {data}, mean ± standard deviation; merged, then "
        "all blocks trained again. Axes do not begin at 0."
    )


if __name__ == "__main__":
    print(draw_overview(Path("results")))
