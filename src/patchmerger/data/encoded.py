"""Images as they are stored: files, pictures, rows of a table, items of another library's dataset; not decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from patchmerger.data.decoding import Picture


class Encoded(Protocol):
    """Images as they are stored: files, rows of a table, items of another library's dataset."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int) -> Picture:
        """The encoded bytes of image ``index``, or the picture that another library made of them."""

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""


@dataclass(frozen=True)
class EncodedSet:
    """A split whose images are not decoded yet.

    Attributes:
        images: n images.
        targets: int64 (n,), or float32 (n, C) with several labels an image.
    """

    images: Encoded
    targets: Tensor


@dataclass(frozen=True)
class EncodedDataset:
    """A dataset that is found but not decoded.

    Attributes:
        splits: Images and targets, by ``"train"`` and, where there are such splits, ``"validation"`` and ``"test"``.
        class_names: The name of each class number; none without labels.
        remarks: What a user should know, such as a folder that is not read.
    """

    splits: dict[str, EncodedSet]
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class PictureList:
    """Pictures that are at hand.

    Args:
        pictures: The pictures.
        origin: Where they are from, for messages.
    """

    def __init__(self, pictures: Sequence[Picture], origin: str) -> None:
        self.pictures = pictures
        self.origin = origin

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Picture:
        """Picture ``index``."""
        return self.pictures[index]

    def name(self, index: int) -> str:
        """Where it is from, and its number."""
        return f"image {index} of {self.origin}"


class ImageFiles:
    """Image files.

    Args:
        paths: One path an image.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Path:
        """The path of file ``index``."""
        return self.paths[index]

    def name(self, index: int) -> str:
        """The path of file ``index``."""
        return str(self.paths[index])
