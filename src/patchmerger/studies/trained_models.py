"""The trained plain models that a study begins with: runs of ``patchmerger fit --merge null``, with their images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.acceleration.accelerating import check_classes, find_teacher
from patchmerger.data import Augmentation, ImageDataset, ImageSplits, read_images, split_images
from patchmerger.models.settings import ModelSettings
from patchmerger.runs.files import read_json
from patchmerger.runs.run_folder import RESULTS_FILE, read_settings
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import FitSettings


def trained_models(folders: Sequence[Path], test_images: int | None = None) -> list[TrainedModel]:
    """The models of finished runs, in these folders; images that several of them share are read once.

    Raises:
        FileNotFoundError: One is none of a finished run.
        ValueError: A model's classes are not those of its images.
    """
    read: dict[str, ImageDataset] = {}
    found = []
    for folder in folders:
        if not (folder / RESULTS_FILE).is_file():
            raise FileNotFoundError(f"models: {folder} has no {RESULTS_FILE}: it is no finished run of patchmerger fit")
        run = read_settings(folder, FitSettings)
        key = str(run.data)
        if key not in read:
            read[key] = read_images(run.data)
        images = split_images(read[key], seed=run.seed)
        _warn_of_swapped(folder, run, images)
        found.append(TrainedModel(folder, run, _with_fewer(images, test_images)))
    return found


def _warn_of_swapped(folder: Path, run: FitSettings, images: ImageSplits) -> None:
    """Say where a run was trained on other images than its settings lead to now."""
    content = read_json(folder / RESULTS_FILE)["images"].get("content")
    if content not in (None, images.content):
        warnings.warn(
            f"models: {folder} was trained on other images, or labels, than data ({run.data.source}) holds now, so "
            "what is tested on may be what it learned from: put them back, or train it anew",
            stacklevel=4,
        )


class TrainedModel:
    """A plain model, the images that its run read, and what was said of its training."""

    def __init__(self, folder: Path, run: FitSettings, images: ImageSplits) -> None:
        self.folder, self.run, self.seed, self.data = folder, run, run.seed, run.data
        self.teacher = find_teacher(folder)
        self.augmentation = (run.augmentation or Augmentation()).resolved(run.data.source)
        self.images = images
        check_classes(self.teacher, self.images, self.data.source)
        self.image_size = self.teacher.image_size
        self.model = run.model.resolve(native_size(self.images))
        if run.init is not None:  # which says what it is
            self.model = ModelSettings(_architecture(self.teacher.model), {"img_size": self.image_size})


def _with_fewer(images: ImageSplits, count: int | None) -> ImageSplits:
    """The images with ``count`` of the test images, where that is given."""
    if count is None:
        return images
    if count > len(images.test):
        raise ValueError(
            f"test_images ({count:,}) are more than there are ({len(images.test):,}): leave it out for all"
        )
    drawn = f"{images.description}; {count:,} of the test images count, drawn at random (seed 0)"
    return replace(images, test=images.test.drawn(count, 0), description=drawn)


def _architecture(net: nn.Module) -> str:
    """Timm's name of a model of timm, else that of its class."""
    known: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    return known.get("architecture") or type(net).__name__
