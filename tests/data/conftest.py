"""Small pictures and small folders of them."""

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Makes ``name/<class>/<number>.png``; returns the folder ``name``."""

    def make(name: str = "pets", classes: tuple[str, ...] = ("cat", "dog"), count: int = 20) -> Path:
        for number, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for index in range(count):
                picture(1000 * number + index).save(folder / f"{index:03}.png")
        return tmp_path / name

    return make


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No folder of data by name, and a cache of datasets' that other tests do not share."""
    monkeypatch.delenv("PATCHMERGER_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
