"""The merge maps in results/, of a model on CIFAR-10 and Tiny ImageNet: ``python -m tools.merge_maps FOLDER NAME``.

For each of both: the numbers (JSON), maps and pixels (safetensors) and the picture (PNG), which ``make pictures`` draws
again from these two. NAME is what pictures call the model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from patchmerger.maps.settings import ShowSettings
from patchmerger.maps.showing import read_shown, show
from patchmerger.reports.pictures.map_pictures import draw_grid
from patchmerger.runs.files import write_json
from patchmerger.runs.tensors import read_tensors, write_tensors

RESULTS = Path("results")
SOURCES = {"cifar10": "uoft-cs/cifar10", "tiny-imagenet": "zh-plus/tiny-imagenet"}
SETTINGS = ShowSettings(examples=6, limit=1000, seed=3)


def draw_maps(results: dict[str, Any], path: Path) -> None:
    """Draw the picture of such results, whose maps lie beside it.

    Args:
        results: The content of the JSON file.
        path: The PNG.
    """
    draw_grid(results, read_tensors(path.with_suffix(".safetensors")), path)
    path.with_suffix(".svg").unlink()  # too large for a repository


def main(arguments: Sequence[str]) -> None:
    """Read the maps of a model and draw them.

    Args:
        arguments: The model's folder, what to call it, and the folder of the results (by default that of this
            repository).
    """
    model, name, *rest = arguments
    folder = Path(rest[0]) if rest else RESULTS
    for short, source in SOURCES.items():
        path = folder / f"merge-maps-{short}.json"
        command = f"patchmerger show {name!r} --data {source} --examples {SETTINGS.examples} --seed {SETTINGS.seed}"
        with TemporaryDirectory() as temporary:
            show(model, data=source, settings=SETTINGS, out=Path(temporary) / "maps", command=command)
            results, tensors = read_shown(Path(temporary) / "maps")
        results |= {"model": name, "folder": str(RESULTS)}
        write_json(path, results)
        write_tensors(path.with_suffix(".safetensors"), tensors)
        draw_maps(results, path.with_suffix(".png"))
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
