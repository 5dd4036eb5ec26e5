"""What happens to each image, on uint8 tensors: cropping and flipping in training, resizing in evaluation.

Floats stay as they are. Mixup and cutmix are not here: they are done on whole batches, on the device that trains, and
so is ``normalize``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

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

    What comes out is (3, S, S), of S = ``image_size``; ``ValueError`` is raised where that is below 1.
    """

    def __init__(self, image_size: int, preprocessing: Preprocessing) -> None:
        if image_size < 1:
            raise ValueError(f"image_size ({image_size}) must be at least 1")
        self.image_size = image_size
        self.preprocessing = preprocessing

    def __call__(self, image: Tensor) -> Tensor:
        """Fits one image: uint8 (3, H, W) to (3, S, S)."""
        if image.is_floating_point():
            return _as_it_is(image, self.image_size)
        return fit(image, (self.image_size, self.image_size), self.preprocessing)


class TrainTransform:
    """Random crop, flip, automatic augmentation and erasing, in this order, to (3, S, S) with S = ``image_size``.

    Images are resized as in evaluation, as the preprocessing of the model has it.
    """

    def __init__(self, image_size: int, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        self.image_size = image_size
        self.augmentation = augmentation.resolved()
        self.preprocessing = preprocessing
        self._fit = EvalTransform(image_size, replace(preprocessing, crop_pct=1.0))
        self._area = v2.RandomResizedCrop(image_size, scale=augmentation.scale)
        self._further: list[Transform] = []
        if augmentation.auto is not None:
            self._further.append({"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[augmentation.auto]())
        if augmentation.erasing > 0:
            self._further.append(v2.RandomErasing(augmentation.erasing, value=[_GREY] * 3))

    def __call__(self, image: Tensor) -> Tensor:
        """Varies one image: uint8 (3, H, W) to (3, S, S)."""
        return self.vary(self.prepare(image))

    def prepare(self, image: Tensor) -> Tensor:
        """What is done to an image in each epoch alike: uint8 (3, H, W) to (3, H', W')."""
        size = self.image_size
        if image.is_floating_point():
            return _as_it_is(image, size)
        if self.augmentation.crop == "none":
            return self._fit(image)
        if self.augmentation.crop == "pad":  # with black
            sides = (size, size)
            return torch.nn.functional.pad(_resized(image, sides, sides, self.preprocessing), (size // 8,) * 4)
        return image

    def vary(self, image: Tensor) -> Tensor:
        """What is drawn for an image that :meth:`prepare` gave: (3, H', W') to (3, S, S)."""
        if image.is_floating_point():
            return image
        size = self.image_size
        if self.augmentation.crop == "pad":  # as v2.RandomCrop, in a quarter of its time, which would limit training
            top, left = (random.randint(0, length - size) for length in image.shape[1:])
            image = image[:, top : top + size, left : left + size]
        elif self.augmentation.crop == "resized":  # as v2.RandomResizedCrop, with every interpolation
            part: Tensor = functional.crop(image, **self._area.make_params([image]))
            image = _resize(part, (size, size), self.preprocessing.interpolation)
        if self.augmentation.flip and random.random() < 0.5:
            image = image.flip(-1)
        for transform in self._further:
            image = transform(image)
        return image


def training_transform(
    image_size: int, augmentation: Augmentation | Transform, preprocessing: Preprocessing
) -> Transform:
    """How training images are varied: as the settings say, or by the function that is given in their place."""
    if isinstance(augmentation, Augmentation):
        return TrainTransform(image_size, augmentation, preprocessing)
    return _OnCopies(augmentation)


@dataclass(frozen=True)
class _OnCopies:
    """A function of a user's, which may write to what it is given, on a copy of each image."""

    vary: Transform

    def __call__(self, image: Tensor) -> Tensor:
        return self.vary(image.clone())


def _as_it_is(image: Tensor, image_size: int) -> Tensor:
    """An image of floats, which a dataset of one's own has prepared."""
    if tuple(image.shape[1:]) != (image_size, image_size):
        raise ValueError(
            f"images of floats are taken as they are, but {tuple(image.shape)} is not (3, {image_size}, {image_size}): "
            "resize them in the dataset, or let it give pictures of PIL or uint8"
        )
    return image


def fit(image: Tensor, size: tuple[int, int], preprocessing: Preprocessing, times: int = 1) -> Tensor:
    """An image, uint8 (3, H, W), at the height and width that a model takes, as timm prepares it for evaluation.

    It is resized to ``size / crop_pct``, as ``crop_mode`` says, and the middle is cropped. With ``times`` the same part
    of the image comes, so many times as large.
    """
    height, width = (times * preprocessing.resized_side(side) for side in size)
    size = (times * size[0], times * size[1])
    image = _resized(image, (height, width), size, preprocessing)
    cropped: Tensor = image if tuple(image.shape[1:]) == size else functional.center_crop(image, list(size))
    return cropped


def _resized(image: Tensor, sides: tuple[int, int], filled: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    """Resize to cover ``sides``, to both, or to fit in, and fill up to ``filled``; (height, width) each."""
    height, width = image.shape[1:]
    fitting = max(height / sides[0], width / sides[1])
    if preprocessing.crop_mode == "squash":
        size = sides
    elif preprocessing.crop_mode == "border":  # as timm rounds
        size = (round(height / fitting), round(width / fitting))
    elif sides[0] != sides[1]:
        covering = min(height / sides[0], width / sides[1])
        size = (round(height / covering), round(width / covering))
    else:  # as torchvision does
        side = sides[0]
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = _resize(image, (max(1, size[0]), max(1, size[1])), preprocessing.interpolation)
    if preprocessing.crop_mode != "border":
        return resized
    height, width = (max(0, whole - length) for whole, length in zip(filled, resized.shape[1:], strict=True))
    edges = [width // 2, height // 2, (width + 1) // 2, (height + 1) // 2]
    padded: Tensor = functional.pad(resized, edges, fill=[round(255 * value) for value in preprocessing.mean])
    return padded


def _resize(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    if mode := _OF_TENSORS.get(interpolation):
        resized: Tensor = functional.resize(image, list(size), interpolation=mode, antialias=True)
        return resized
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    filtered = np.array(picture.resize(size[::-1], Image.Resampling[interpolation.upper()]))  # (H, W, 3)
    return torch.from_numpy(filtered).permute(2, 0, 1).contiguous()
