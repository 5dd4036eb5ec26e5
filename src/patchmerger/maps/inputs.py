"""Images as a model takes them, beside what a person is shown of them: the same part of the image, in its colours."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from timm.models.naflexvit import NaFlexVit
from torch import Tensor, nn

from patchmerger.data.decoding import decode
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import fit, normalize
from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.maps.reading import Images

SHOWN_SIDE = 448
"""An image that is shown is enlarged, from its file, to no more than this many pixels a side."""


@dataclass(frozen=True)
class ShownImage:
    """One image, for the model, as a batch of one, and for the eye.

    ``view`` is the part of it that the model sees, uint8 (3, H, W), a whole number of times as large.
    """

    name: str
    view: Tensor
    inputs: Images
    label: str | None = None


class Inputs(Protocol):
    """What prepares files for one model, fitted to its height and width in pixels."""

    size: tuple[int, int]

    def read(self, path: Path, name: str) -> ShownImage:
        """One file; a BadImageError says what is wrong with it."""


class ModelInputs:
    """Prepares images for one model that takes images (B, 3, H, W), on its device.

    ``size`` is height and width in pixels that images are fitted to; of NaFlex models the area, at most.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.size = image_size_of(model)
        like = next(p for p in model.parameters() if p.is_floating_point())
        self._device, self._dtype = like.device, like.dtype
        self._patch = cast(Any, model).embeds.patch_size if isinstance(model, NaFlexVit) else None
        self._whole = preprocessing if self._patch is None else replace(preprocessing, crop_pct=1.0, crop_mode="center")

    def read(self, path: Path, name: str) -> ShownImage:
        """One image file.

        Raises:
            BadImageError: It cannot be read.
        """
        return self.prepare(decode(path), name)

    def prepare(self, image: Tensor, name: str, label: str | None = None) -> ShownImage:
        """One image, uint8 (3, H, W) of any size."""
        size = self._fitting(image)
        in_file = min(image.shape[1] // size[0], image.shape[2] // size[1])  # no more than that is to be seen
        times = max(1, min(SHOWN_SIDE // max(size), in_file))
        view = fit(image, size, self._whole, times)
        return ShownImage(name, view, self.batch(fit(image, size, self._whole)[None]), label)

    def fit(self, image: Tensor) -> Tensor:
        """One image at the size that the model takes, uint8 (3, H, W)."""
        return fit(image, self._fitting(image), self._whole)

    def batch(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) on the model's device, from uint8."""
        return normalize(images.to(self._device), self.preprocessing).to(self._dtype)

    def _fitting(self, image: Tensor) -> tuple[int, int]:
        """Height and width that an image is fitted to: those of the model, or for NaFlex of about the same area."""
        if self._patch is None:
            return self.size
        height, width = self._patch
        scale = math.sqrt(self.size[0] * self.size[1] / (image.shape[1] * image.shape[2]))
        rows = max(1, int(scale * image.shape[1] / height))
        columns = max(1, int(scale * image.shape[2] / width))
        return rows * height, columns * width


def class_in_turn(targets: Tensor, count: int, *, seed: int) -> list[int]:
    """Indices of ``count`` images at most, one of each class before a second of any, sorted by class.

    Targets are class numbers, int64 (n,); of images with several labels or none, (n, …), it is a random choice.
    """
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed)).tolist()
    if targets.ndim != 1:
        return order[:count]
    drawn: dict[int, int] = {}
    turns = []
    for index in order:
        label = int(targets[index])
        turns.append((drawn.get(label, 0), index))
        drawn[label] = drawn.get(label, 0) + 1
    turns.sort(key=lambda turn: turn[0])  # stable: classes stay in their random order
    chosen = [(turn, int(targets[index]), index) for turn, index in turns[:count]]
    return [index for _, _, index in sorted(chosen)]
