"""What happens to each image, on uint8 tensors: cropping and flipping in training, resizing in evaluation.

Normalisation, mixup and cutmix are not here: they are done on whole batches, on the device that trains.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

Transform = Callable[[Tensor], Tensor]
"""From a uint8 image (3, H, W) of any size to one (3, S, S). Random ones draw from torch, numpy or ``random``."""

_WRITTEN = ("MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN")
_GREY = 128


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    For anything else, give ``ImageData`` a function of your own (a ``Transform``) in its place.

    Attributes:
        crop: ``"pad"`` resizes the shorter side to the image size, pads by an eighth of it and crops at random;
            ``"resized"`` crops a random part of the area and resizes it (as for ImageNet); ``"none"`` crops the middle.
        scale: For ``"resized"``, the smallest and largest share of the area.
        flip: Mirror every other image, left to right; not for images of writing.
        auto: Also ``"trivial"`` (TrivialAugment, arXiv 2103.10158), ``"rand"`` (RandAugment, arXiv 1909.13719).
        erasing: The probability of painting a random rectangle grey (arXiv 1708.04896).
    """

    crop: Literal["pad", "resized", "none"] = "pad"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    auto: Literal["trivial", "rand"] | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in ("pad", "resized", "none"):
            raise ValueError(f'crop must be "pad", "resized" or "none", got {self.crop!r}')
        if self.auto not in (None, "trivial", "rand"):
            raise ValueError(f'auto must be None, "trivial" or "rand", got {self.auto!r}')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares, 0 < smallest <= largest <= 1, got {self.scale}")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing must be a probability, got {self.erasing}")


def default_augmentation(source: str) -> Augmentation:
    """The augmentation for a source where none is asked for: ``Augmentation()``, less for written characters.

    Args:
        source: As in ``read_source``. The built-in ``"digits"`` are not varied at all: they are centred, and small
            enough to be learned in a minute; torchvision's MNIST, EMNIST, KMNIST, QMNIST, USPS and SVHN are not
            mirrored.
    """
    if source == "digits":
        return Augmentation(crop="none", flip=False)
    return Augmentation(flip=source.removeprefix("torchvision:") not in _WRITTEN)


class TrainTransform:
    """Random crop, flip, automatic augmentation and erasing, in this order.

    Args:
        image_size: Height and width S that come out.
        augmentation: What to do.
    """

    def __init__(self, image_size: int, augmentation: Augmentation) -> None:
        _check_size(image_size)
        crops: dict[str, Transform] = {
            "pad": PadCrop(image_size),
            "resized": v2.RandomResizedCrop(
                image_size, scale=augmentation.scale, interpolation=InterpolationMode.BICUBIC, antialias=True
            ),
            "none": EvalTransform(image_size),
        }
        self.crop = crops[augmentation.crop]
        self.flip = augmentation.flip
        self.further: list[Transform] = []
        if augmentation.auto is not None:
            self.further.append({"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[augmentation.auto]())
        if augmentation.erasing > 0:
            self.further.append(v2.RandomErasing(augmentation.erasing, value=[_GREY] * 3))

    def __call__(self, image: Tensor) -> Tensor:
        """Varies one image: uint8 (3, H, W) to (3, S, S)."""
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
        image = _resize(image, size)
        top = random.randint(0, image.shape[1] + 2 * padding - size)
        left = random.randint(0, image.shape[2] + 2 * padding - size)
        padded = torch.nn.functional.pad(image, (padding, padding, padding, padding))
        return padded[:, top : top + size, left : left + size]


class EvalTransform:
    """Resizes the shorter side to ``image_size / crop_pct`` and crops the middle; skipped where the size fits.

    Args:
        image_size: Height and width S that come out.
        crop_pct: The share of the resized side that is kept.

    Raises:
        ValueError: If ``image_size`` is below 1 or ``crop_pct`` is not in (0, 1].
    """

    def __init__(self, image_size: int, crop_pct: float = 1.0) -> None:
        _check_size(image_size)
        if not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
        self.image_size = image_size
        self.resized = round(image_size / crop_pct)

    def __call__(self, image: Tensor) -> Tensor:
        """Fits one image: uint8 (3, H, W) to (3, S, S)."""
        image = _resize(image, self.resized)
        if tuple(image.shape[1:]) == (self.image_size, self.image_size):
            return image
        cropped: Tensor = functional.center_crop(image, [self.image_size, self.image_size])
        return cropped

    def keeps(self, size: tuple[int, int] | None) -> bool:
        """Whether images of this height and width come out as they went in."""
        return size == (self.image_size, self.image_size) and self.resized == self.image_size


def _resize(image: Tensor, shorter: int) -> Tensor:
    if min(image.shape[1:]) == shorter:
        return image
    resized: Tensor = functional.resize(image, [shorter], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
