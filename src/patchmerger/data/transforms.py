"""What happens to each image, on uint8 tensors: cropping and flipping in training, resizing in evaluation.

Floats stay as they are. Mixup and cutmix are not here: they are done on whole batches, on the device that trains, and
so is ``normalize``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

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


class EvalTransform:
    """Resizes to ``image_size / crop_pct`` and crops the middle, as ``crop_mode`` says; each is skipped where it fits.

    Args:
        image_size: Height and width S that come out.
        preprocessing: Of the model.

    Raises:
        ValueError: ``image_size`` is below 1.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing) -> None:
        _check_size(image_size)
        self.image_size = image_size
        self.preprocessing = preprocessing
        self.resized = round(image_size / preprocessing.crop_pct)

    def __call__(self, image: Tensor) -> Tensor:
        """Fits one image: uint8 (3, H, W) to (3, S, S)."""
        if image.is_floating_point():
            return _as_it_is(image, self.image_size)
        image = _fit(image, self.resized, self.preprocessing)
        size = [self.image_size, self.image_size]
        if list(image.shape[1:]) == size:
            return image
        if self.preprocessing.crop_mode == "border":
            image = _with_borders(image, self.image_size, self.preprocessing)
        cropped: Tensor = functional.center_crop(image, size)
        return cropped

    def keeps(self, size: tuple[int, int] | None) -> bool:
        """Whether images of this height and width come out as they went in."""
        return size == (self.image_size, self.image_size) and self.resized == self.image_size


class TrainTransform:
    """Random crop, flip, automatic augmentation and erasing, in this order.

    Args:
        image_size: Height and width S that come out.
        augmentation: What to do.
        preprocessing: Of the model: images are resized as in evaluation.

    Raises:
        ValueError: ``image_size`` is below 1.
    """

    def __init__(self, image_size: int, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        _check_size(image_size)
        self.image_size = image_size
        self.crop: Crop = NoCrop(image_size, preprocessing)
        if augmentation.crop == "pad":
            self.crop = PadCrop(image_size, preprocessing)
        elif augmentation.crop == "resized":
            self.crop = ResizedCrop(image_size, augmentation.scale, preprocessing.interpolation)
        self.flip = augmentation.flip
        self.further: list[Transform] = []
        if augmentation.auto is not None:
            self.further.append({"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[augmentation.auto]())
        if augmentation.erasing > 0:
            self.further.append(v2.RandomErasing(augmentation.erasing, value=[_GREY] * 3))

    def __call__(self, image: Tensor) -> Tensor:
        """Varies one image: uint8 (3, H, W) to (3, S, S)."""
        return self.vary(self.prepare(image))

    def prepare(self, image: Tensor) -> Tensor:
        """What is done to an image in each epoch alike: uint8 (3, H, W) to (3, H', W')."""
        if image.is_floating_point():
            return _as_it_is(image, self.image_size)
        return self.crop.prepare(image)

    def vary(self, image: Tensor) -> Tensor:
        """What is drawn for an image that :meth:`prepare` gave: (3, H', W') to (3, S, S)."""
        if image.is_floating_point():
            return image
        image = self.crop.draw(image)
        if self.flip and random.random() < 0.5:
            image = image.flip(-1)
        for transform in self.further:
            image = transform(image)
        return image


class Crop:
    """Brings images to one size: what is the same in each epoch first, then what is drawn."""

    def __call__(self, image: Tensor) -> Tensor:
        """One image: uint8 (3, H, W) to (3, S, S)."""
        return self.draw(self.prepare(image))

    def prepare(self, image: Tensor) -> Tensor:
        """What is the same in each epoch: (3, H, W) to (3, H', W')."""
        return image

    def draw(self, image: Tensor) -> Tensor:
        """What is drawn: (3, H', W') to (3, S, S)."""
        return image


class NoCrop(Crop):
    """Fits images as in evaluation, and leaves them so.

    Args:
        image_size: Height and width S that come out.
        preprocessing: Of the model.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing) -> None:
        self.fit = EvalTransform(image_size, replace(preprocessing, crop_pct=1.0))

    def prepare(self, image: Tensor) -> Tensor:
        """Fits one image: uint8 (3, H, W) to (3, S, S)."""
        return self.fit(image)


class PadCrop(Crop):
    """Resizes the shorter side to ``image_size`` if it is not, pads by an eighth with black, crops at random.

    As torchvision's RandomCrop with padding, in a quarter of its time: at 32 pixels that alone would limit training.

    Args:
        image_size: Height and width S that come out.
        preprocessing: Of the model; its ``crop_mode`` says which side is resized, or both.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing) -> None:
        self.image_size = image_size
        self.padding = image_size // 8
        self.preprocessing = preprocessing

    def prepare(self, image: Tensor) -> Tensor:
        """Fits and pads one image: uint8 (3, H, W) to (3, H', W')."""
        size, padding = self.image_size, self.padding
        image = _fit(image, size, self.preprocessing)
        if self.preprocessing.crop_mode == "border":
            image = _with_borders(image, size, self.preprocessing)
        return torch.nn.functional.pad(image, (padding, padding, padding, padding))

    def draw(self, image: Tensor) -> Tensor:
        """Crops a padded image: (3, H', W') to (3, S, S)."""
        size = self.image_size
        top, left = (random.randint(0, length - size) for length in image.shape[1:])
        return image[:, top : top + size, left : left + size]


class ResizedCrop(Crop):
    """Crops a random part of the area and resizes it: torchvision's RandomResizedCrop, with every interpolation.

    Args:
        image_size: Height and width S that come out.
        scale: The smallest and the largest share of the area.
        interpolation: As in ``Preprocessing``.
    """

    def __init__(self, image_size: int, scale: tuple[float, float], interpolation: str) -> None:
        self.image_size = image_size
        self.interpolation = interpolation
        self._area = v2.RandomResizedCrop(image_size, scale=scale)

    def draw(self, image: Tensor) -> Tensor:
        """Crops one image: uint8 (3, H, W) to (3, S, S)."""
        part: Tensor = functional.crop(image, **self._area.make_params([image]))
        return _resize(part, (self.image_size, self.image_size), self.interpolation)


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size ({image_size}) must be at least 1")


def _as_it_is(image: Tensor, image_size: int) -> Tensor:
    """An image of floats, which a dataset of one's own has prepared."""
    if tuple(image.shape[1:]) != (image_size, image_size):
        raise ValueError(
            f"images of floats are taken as they are, but {tuple(image.shape)} is not (3, {image_size}, {image_size}): "
            "resize them in the dataset, or let it give pictures of PIL or uint8"
        )
    return image


def _fit(image: Tensor, side: int, preprocessing: Preprocessing) -> Tensor:
    """Resize the shorter side, both, or the longer one to ``side``; an image whose side has that length stays."""
    height, width = image.shape[1:]
    if preprocessing.crop_mode == "squash":
        size = (side, side)
    elif preprocessing.crop_mode == "border":  # as timm rounds
        size = (round(height * side / max(height, width)), round(width * side / max(height, width)))
    else:  # as torchvision does
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    return _resize(image, (max(1, size[0]), max(1, size[1])), preprocessing.interpolation)


def _resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    if mode := _OF_TENSORS.get(interpolation):
        resized: Tensor = functional.resize(image, list(size), interpolation=mode, antialias=True)
        return resized
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    filtered = np.array(picture.resize(size[::-1], Image.Resampling[interpolation.upper()]))  # (H, W, 3)
    return torch.from_numpy(filtered).permute(2, 0, 1).contiguous()


def _with_borders(image: Tensor, side: int, preprocessing: Preprocessing) -> Tensor:
    """Fill up to ``side`` × ``side`` with the mean, the image in the middle."""
    height, width = (max(0, side - length) for length in image.shape[1:])
    edges = [width // 2, height // 2, (width + 1) // 2, (height + 1) // 2]
    padded: Tensor = functional.pad(image, edges, fill=[round(255 * value) for value in preprocessing.mean])
    return padded
