"""Folders of small image files, and what is found in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from patchmerger.data import DataSettings
from patchmerger.data.sources import open_source

Make = Callable[..., Path]


def fill(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(folder / f"{number:03}.png")
    return folder


def tree(root: Path, *folders: str, count: int = 2) -> Path:
    for folder in folders:
        fill(root / folder, count)
    return root


def found(path: Path, **settings: Any) -> dict[str, int]:
    return {name: len(split.images) for name, split in open_source(DataSettings(str(path), **settings)).splits.items()}
