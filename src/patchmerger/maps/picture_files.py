"""The pictures in a folder of merge maps: the names of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GRID_FILE, STATISTICS_FILE = "grid.png", "statistics.png"
"""Of all images in one picture, and of the mean maps; beside them there is one of each image."""


def picture_names(results: Mapping[str, Any]) -> list[str]:
    """A file name for the picture of each image: its own, without what no file name takes, and numbered if double.

    None begins with a dash, which programs would take for an option, or with a dot, which hides it.
    """
    names: list[str] = []
    for image in results["images"]:
        stem = re.sub(r"[^\w.-]+", "-", Path(image["name"]).stem).lstrip("-.") or "image"
        taken_names = {*names, GRID_FILE, STATISTICS_FILE}
        number = 1
        while (name := f"{stem}{'' if number == 1 else f'-{number}'}.png") in taken_names:
            number += 1
        names.append(name)
    return names


def remove_pictures(folder: Path, results: Mapping[str, Any]) -> None:
    """Remove the pictures of results that are to be replaced."""
    for name in (GRID_FILE, STATISTICS_FILE, *picture_names(results)):
        for picture in (folder / name, (folder / name).with_suffix(".svg")):
            picture.unlink(missing_ok=True)
