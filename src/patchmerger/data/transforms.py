"""What happens to each image, on uint8 tensors: cropping and flipping in training, resizing in evaluation.

Floats stay as they are. Mixup and cutmix are not here: they are done on whole batches, on the device that trains, and
so is ``normalize``.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import Augmentation

Transform = Callable[[Tensor], Tensor]
"""From a uint8 image (3, H, W) of any size to one (3, S, S). Random ones draw from torch, numpy or ``random``."""

_OF_TENSORS = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
"""What torchvision resizes tensors with; PIL knows the others."""

_GREY = 128


def normalize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pixels as a model takes them: float32 (B, 3, S, S), with the mean and standard deviation of its input.

    Args:
        images: uint8 (B, 3, S, S); floats are taken to be normalised already, and returned.
        preprocessing: Of the model.
    """
    if images.is_floating_point():
        return images
    normalized: Tensor = functional.normalize(
        images.float() / 255, list(preprocessing.mean), list(preprocessing.std)
    )  # (B, 3, S, S)
    return normalized


class MiddleCrop:
    """Resizes the shorter side and crops the middle; each is skipped where the size fits.

    Args:
        image_size: Height and width S that come out.
        resized: What the shorter side is resized to; S by default.
        interpolation: As in ``Preprocessing``.

    Raises:
        ValueError: ``image_size`` is below 1.
    """

    def __init__(self, image_size: int, resized: int | None = None, interpolation: str = "bicubic") -> None:
        if image_size < 1:
            raise ValueError(f"image_size ({image_size}) must be at least 1")
        self.image_size = image_size
        self.resized = image_size if resized is None else resized
        self.interpolation = interpolation

    def __call__(self, image: Tensor) -> Tensor:
        """Fits one image: uint8 (3, H, W) to (3, S, S)."""
        if image.is_floating_point():
            return _as_it_is(image, self.image_size)
        image = _resize(image, self.resized, self.interpolation)
        if tuple(image.shape[1:]) == (self.image_size, self.image_size):
            return image
        cropped: Tensor = functional.center_crop(image, [self.image_size, self.image_size])
        return cropped

    def keeps(self, size: tuple[int, int] | None) -> bool:
        """Whether images of this height and width come out as they went in."""
        return size == (self.image_size, self.image_size) and self.resized == self.image_size


class EvalTransform(MiddleCrop):
    """Resizes the shorter side to ``image_size / crop_pct`` and crops the middle.

    Args:
        image_size: Height and width S that come out.
        preprocessing: Of the model; of it ``crop_pct`` and ``interpolation``.

    Raises:
        ValueError: ``image_size`` is below 1.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing) -> None:
        super().__init__(image_size, round(image_size / preprocessing.crop_pct), preprocessing.interpolation)


class TrainTransform:
    """Random crop, flip, automatic augmentation and erasing, in this order.

    Args:
        image_size: Height and width S that come out.
        augmentation: What to do.

    Raises:
        ValueError: ``image_size`` is below 1.
    """

    def __init__(self, image_size: int, augmentation: Augmentation) -> None:
        self.image_size = image_size
        self.crop: Transform = MiddleCrop(image_size)
        if augmentation.crop == "pad":
            self.crop = PadCrop(image_size)
        elif augmentation.crop == "resized":
            self.crop = v2.RandomResizedCrop(
                image_size, scale=augmentation.scale, interpolation=InterpolationMode.BICUBIC, antialias=True
            )
        self.flip = augmentation.flip
        self.further: list[Transform] = []
        if augmentation.auto is not None:
            self.further.append({"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[augmentation.auto]())
        if augmentation.erasing > 0:
            self.further.append(v2.RandomErasing(augmentation.erasing, value=[_GREY] * 3))

    def __call__(self, image: Tensor) -> Tensor:
        """Varies one image: uint8 (3, H, W) to (3, S, S)."""
        if image.is_floating_point():
            return _as_it_is(image, self.image_size)
        image = self.crop(image)
        if self.flip and random.random() < 0.5:
            image = image.flip(-1)
        for transform in self.further:
            image = transform(image)
        return image


class PadCrop:
    """Resizes the shorter side to ``image_size`` if it is not, pads by an eighth with black, crops at random.

    As torchvision's RandomCrop with padding, in a quarter of its time: at 32 pixels that alone would limit training.

    Args:
        image_size: Height and width S that come out.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.padding = image_size // 8

    def __call__(self, image: Tensor) -> Tensor:
        """Crops one image: uint8 (3, H, W) to (3, S, S)."""
        size, padding = self.image_size, self.padding
        image = _resize(image, size, "bicubic")
        top = random.randint(0, image.shape[1] + 2 * padding - size)
        left = random.randint(0, image.shape[2] + 2 * padding - size)
        padded = torch.nn.functional.pad(image, (padding, padding, padding, padding))
        return padded[:, top : top + size, left : left + size]


def _as_it_is(image: Tensor, image_size: int) -> Tensor:
    """An image of floats, which a dataset of one's own has prepared."""
    if tuple(image.shape[1:]) != (image_size, image_size):
        raise ValueError(
            f"images of floats are taken as they are, but {tuple(image.shape)} is not (3, {image_size}, {image_size}): "
            "resize them in the dataset, or let it give pictures of PIL or uint8"
        )
    return image


def _resize(image: Tensor, shorter: int, interpolation: str) -> Tensor:
    height, width = image.shape[1:]
    if min(height, width) == shorter:
        return image
    if mode := _OF_TENSORS.get(interpolation):
        resized: Tensor = functional.resize(image, [shorter], interpolation=mode, antialias=True)
        return resized
    scale = shorter / min(height, width)
    size = (shorter, int(height * scale)) if width < height else (int(width * scale), shorter)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    filtered = np.array(picture.resize(size, Image.Resampling[interpolation.upper()]))  # (H, W, 3)
    return torch.from_numpy(filtered).permute(2, 0, 1).contiguous()
