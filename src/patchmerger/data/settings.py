"""Which images to use and how training images are varied, as settings that are checked when they are made."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal, Self

from patchmerger.runs.checks import check_at_least, check_choices

BadFiles = Literal["error", "skip"]
"""What to do with a file that is not an image: stop and name it, or leave it out and list it."""

Layout = Literal["auto", "classes", "splits"]
"""What the folders in a folder are: classes, splits of classes, or what names and contents leave no doubt of."""

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is read by default, as of Pillow: a quarter of a GiB at three bytes each."""

_PILLOW_LIMIT = 2 * MAX_PIXELS
_WRITTEN = ("MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "SEMEION", "Omniglot", "RenderedSST2")


@dataclass(frozen=True)
class DataSettings:
    """Which images to use.

    Attributes:
        source: "digits" (built in), a folder (of class folders, of parquet files, or saved by the Hugging Face
            datasets library), "torchvision:CIFAR10" and the like, or "owner/name" of a dataset on the Hub, which is
            first looked for in the folder $PATCHMERGER_DATA/name.
        root: For torchvision, the folder that holds its files; $PATCHMERGER_DATA by default.
        subset: For a dataset of the Hub that has several configurations, which one; for torchvision:EMNIST, which
            characters: "balanced", "byclass", "bymerge", "letters", "digits" or "mnist".
        image: For tables, the column of the images, if there are several.
        label: For tables, the column of the labels, if there are several.
        layout: What the folders in a folder of images are: "classes", "splits" (train, validation, test, with class
            folders in them), or "auto" where names and contents leave no doubt.
        validation: The share of the training images that is held out where there is no validation split; 0 for none.
        crop_pct: In evaluation, the share of the resized image that is kept, in the middle; by default that of the
            pretrained weights, and 1 without them.
        bad_files: What to do with a file that is not an image: "error" stops and names it, "skip" leaves it out and
            lists it.
        max_pixels: Images with more pixels are bad files: they are refused before memory is taken for them.
        memory_gib: Keep the decoded images in memory if they take no more than this many GiB.
        workers: Processes that load images on each device; chosen by the number of cores by default.
        streaming: Read training images in order, from WebDataset shards (.tar), parquet files or the Hub, without
            holding or indexing them: for sets that do not fit a disk.
        samples: With streaming, the training images in an epoch, where the source does not say how many there are.
        shuffle_buffer: With streaming, the images among which the next one is drawn; each process that reads holds
            so many, encoded.

    Raises:
        ValueError: A number is out of its range, or ``samples`` is given without ``streaming``.
    """

    source: str = "digits"
    root: str | None = None
    subset: str | None = None
    image: str | None = None
    label: str | None = None
    layout: Layout = "auto"
    validation: float = 0.1
    crop_pct: float | None = None
    bad_files: BadFiles = "error"
    max_pixels: int = MAX_PIXELS
    memory_gib: float = 2.0
    workers: int | None = None
    streaming: bool = False
    samples: int | None = None
    shuffle_buffer: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.validation <= 0.5:
            raise ValueError(f"validation ({self.validation}) must be a share from 0 to 0.5 of the training images")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct ({self.crop_pct}) must be above 0 and at most 1")
        check_choices(self)
        if not 1 <= self.max_pixels <= _PILLOW_LIMIT:
            raise ValueError(f"max_pixels ({self.max_pixels}) must be from 1 to {_PILLOW_LIMIT}, as Pillow has it")
        check_at_least(0, self, "memory_gib", "workers")
        check_at_least(1, self, "shuffle_buffer")
        if self.samples is not None and not self.streaming:
            raise ValueError(f"samples ({self.samples}) means nothing without streaming: set streaming to true")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples ({self.samples}) must be the number of training images in an epoch, at least 1")


def as_data_settings(value: str | os.PathLike[str] | DataSettings) -> DataSettings:
    """``DataSettings`` as they are, or those of a source alone: "digits", a folder, "owner/name".

    Raises:
        TypeError: Another kind of value.
    """
    if isinstance(value, DataSettings):
        return value
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        word = isinstance(value, str) or os.path.dirname(path)
        return DataSettings(source=path if word else os.path.join(".", path))  # no built-in name
    raise TypeError(f"data ({type(value).__name__}) must be a source such as 'digits' or a folder, or DataSettings")


@dataclass(frozen=True)
class OwnData:
    """What a run's settings record of images that are handed over in Python, in place of ``DataSettings``.

    Attributes:
        source: What to call them: the class of the dataset.
        images: The number of images by split.
        sha256: A hash of some images of each split, with their labels.
        workers: As in ``DataSettings``.
        crop_pct: As in ``DataSettings``.
        validation: As in ``DataSettings``, where nothing else says what is held out.
    """

    source: str
    images: dict[str, int]
    sha256: str
    workers: int | None = None
    crop_pct: float | None = None
    validation: float | None = None


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    For anything else, give ``ImageData`` a function of your own (a ``Transform``) in its place.

    Attributes:
        crop: ``"pad"`` resizes the shorter side to the image size, pads by an eighth of it and crops at random;
            ``"resized"`` crops a random part of the area and resizes it (as for ImageNet); ``"none"`` crops the
            middle. Where the model's ``crop_mode`` is not ``"center"``, another side or both are resized. If not
            given, ``"none"`` for the built-in digits and ``"pad"`` for others.
        scale: For ``"resized"``, the smallest and largest share of the area.
        flip: Mirror every other image, left to right; if not given, all but images of writing, as
            ``default_augmentation`` knows them.
        auto: Also ``"trivial"`` (TrivialAugment, arXiv 2103.10158), ``"rand"`` (RandAugment, arXiv 1909.13719).
        erasing: The probability of painting a random rectangle grey (arXiv 1708.04896).
    """

    crop: Literal["pad", "resized", "none"] | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool | None = None
    auto: Literal["trivial", "rand"] | None = None
    erasing: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale ({self.scale}) must be two shares, 0 < smallest <= largest <= 1")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing ({self.erasing}) must be a probability, from 0 to 1")

    def resolved(self, source: str = "") -> Self:
        """The same with what is not given as it is by default for ``source``, as in ``DataSettings``."""
        digits = source == "digits"
        flip = not digits and source.removeprefix("torchvision:") not in _WRITTEN
        return replace(
            self,
            crop=self.crop or ("none" if digits else "pad"),
            flip=flip if self.flip is None else self.flip,
        )


def default_augmentation(source: str) -> Augmentation:
    """The augmentation for a source where none is asked for: padded crops and flips, less for written characters.

    Args:
        source: As in ``DataSettings``. The built-in ``"digits"`` are not varied at all: they are centred, and small
            enough to be learned in a minute; torchvision's MNIST, EMNIST, KMNIST, QMNIST, USPS, SVHN, SEMEION,
            Omniglot and RenderedSST2 are not mirrored.
    """
    return Augmentation().resolved(source)
