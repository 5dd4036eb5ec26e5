"""The images that an export is calibrated on and compared with the eager model on, or stated noise in their place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchmerger.data.batches import EvaluationImages
from patchmerger.data.images import ImageSet
from patchmerger.data.loading import DataLike, load_images, name_of
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import EvalTransform, normalize
from patchmerger.exports.settings import LEAST_CALIBRATION, ExportSettings


@dataclass(frozen=True)
class Images:
    """Images in both forms that files take.

    ``normalized`` are float32 (n, 3, H, W); ``pixels`` uint8 (n, H, W, 3), where preprocessing is built in, else
    ``None``.
    """

    normalized: Tensor
    pixels: Tensor | None
    source: str
    real: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.normalized.shape[2:]
        return height, width

    def resized(self, count: int, size: tuple[int, int], preprocessing: Preprocessing | None) -> Images:
        """The first ``count`` of them with another height and width."""
        if self.pixels is None or preprocessing is None:
            return replace(self, normalized=_resized(self.normalized[:count], size))
        pixels = _resized(self.pixels[:count].permute(0, 3, 1, 2).float(), size).round().clamp(0, 255).to(torch.uint8)
        return _of_pixels(pixels, preprocessing, True, self.source, real=self.real)

    @property
    def given(self) -> NDArray[Any]:
        """As the exported file takes them."""
        return (self.normalized if self.pixels is None else self.pixels).numpy()


@dataclass(frozen=True)
class ExportImages:
    """The images of one export: held-out ones to compare with the eager model on, and for int8 some to calibrate on.

    ``other_sizes`` are some of those for the comparison in other sizes, for a file that takes any.
    """

    parity: Images
    calibration: Images | None
    other_sizes: tuple[Images, ...] = ()

    @property
    def compared(self) -> tuple[Images, ...]:
        """All that the file and the eager model are compared on, in each size."""
        return (self.parity, *self.other_sizes)


def noise(
    shape: tuple[int, int, int], count: int, preprocessing: Preprocessing | None, *, with_pixels: bool, seed: int
) -> Images:
    """Noise in place of images: evenly distributed pixels; normal numbers where no preprocessing is known."""
    generator = torch.Generator().manual_seed(seed)
    if preprocessing is None:
        return Images(torch.randn(count, *shape, generator=generator), None, "images of noise", False)
    pixels = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return _of_pixels(pixels, preprocessing, with_pixels, "images of noise", real=False)


def prepare_images(
    data: DataLike, preprocessing: Preprocessing, image_size: int, settings: ExportSettings
) -> ExportImages:
    """Read and prepare images as in evaluation: held-out ones to compare on, and training images to calibrate on.

    Raises:
        ValueError: They cannot be read, or are too few to calibrate on.
    """
    splits = load_images(data, seed=settings.seed, labels_needed=False)
    name = name_of(data)
    with_pixels, calibration = settings.with_preprocessing, None
    if settings.precision == "int8":
        if len(splits.train) < LEAST_CALIBRATION:
            raise ValueError(
                f"data ({name}) has {len(splits.train)} images to calibrate on: {LEAST_CALIBRATION} at least, without "
                f"those held out for the comparison"
            )
        pixels = _some_pixels(splits.train, settings.calibration_images, image_size, preprocessing, settings.seed)
        calibration = _of_pixels(pixels, preprocessing, with_pixels, f"training images of {name}", real=True)
    held_out = _some_pixels(splits.test, settings.parity_images, image_size, preprocessing, settings.seed)
    return ExportImages(
        _of_pixels(held_out, preprocessing, with_pixels, f"test images of {name}", real=True), calibration
    )


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _some_pixels(images: ImageSet, count: int, image_size: int, preprocessing: Preprocessing, seed: int) -> Tensor:
    """At most ``count`` images, drawn at random: (n, 3, S, S)."""
    drawn = images.drawn(count, seed)
    return EvaluationImages(drawn, EvalTransform(image_size, preprocessing)).__getitems__(range(len(drawn)))[0]


def _of_pixels(pixels: Tensor, preprocessing: Preprocessing, with_pixels: bool, source: str, *, real: bool) -> Images:
    """Images of pixels (n, 3, H, W), which are floats already where the dataset has prepared them."""
    if with_pixels and pixels.is_floating_point():
        raise ValueError("data holds images of floats, which are normalised already: with_preprocessing needs pixels")
    rows = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()) if with_pixels else None
    return Images(normalize(pixels, preprocessing), None if rows is None else torch.from_numpy(rows), source, real)
