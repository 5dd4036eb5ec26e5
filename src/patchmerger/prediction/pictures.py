"""The images that are given, as one list: files, folders of files, pictures of PIL, bytes, tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from patchmerger.data.decoding import Picture
from patchmerger.data.folders import IMAGES, images_below
from patchmerger.runs.shared_work import shard_of

OneImage: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | Tensor
ImagesLike: TypeAlias = OneImage | Iterable[OneImage]
"""Files or folders by their path, encoded bytes, pictures of PIL, tensors (3, H, W) or (B, 3, H, W); one or several."""


@dataclass(frozen=True)
class Pictures:
    """Images that are not read yet.

    Attributes:
        names: What to call each: its path, or its place.
        pictures: A path, encoded bytes, a picture of PIL, or a tensor (3, H, W).
    """

    names: tuple[str, ...]
    pictures: tuple[Picture | Tensor, ...]

    def __len__(self) -> int:
        return len(self.names)


def find_pictures(images: ImagesLike, *, shard: str | None = None) -> Pictures:
    """List images; folders are searched with the folders in them, for files with the ending of an image.

    Args:
        images: One image or several: paths of files or folders, encoded bytes, pictures of PIL, tensors.
        shard: Which share of them, such as "2/8" for the second of eight; the same folders give the same shares
            everywhere.

    Raises:
        FileNotFoundError: A path leads nowhere.
        TypeError: Something that is no image.
        ValueError: A folder without images, or none at all; a tensor of another shape.
    """
    given = [images] if isinstance(images, str | os.PathLike | bytes | Image.Image | Tensor) else list(images)
    found = [pair for place, each in enumerate(given) for pair in _pictures_of(each, place)]
    if not found:
        raise ValueError("images is empty: give at least one image or folder")
    if shard is not None:
        found = found[shard_of(shard)]
    names, pictures = zip(*found, strict=True) if found else ((), ())
    return Pictures(names, pictures)


def _pictures_of(image: OneImage, place: int) -> Iterator[tuple[str, Picture | Tensor]]:
    if isinstance(image, str | os.PathLike):
        for path in _files(Path(image).expanduser()):
            yield str(path), path
    elif isinstance(image, Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape[-2:]:
            raise ValueError(f"images ({tuple(image.shape)}) must be of the shape (3, H, W) or (B, 3, H, W)")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(
                f"images ({image.dtype}) must be uint8, or floats that are normalised for the model as they are"
            )
        rows = list(image) if image.ndim == 4 else [image]
        for row, each in enumerate(rows):
            yield f"image {place}" + (f", row {row}" if image.ndim == 4 else ""), each
    elif isinstance(image, bytes | Image.Image):
        yield f"image {place}", image
    else:
        raise TypeError(
            f"images ({type(image).__name__}) must be paths of files or folders, bytes, pictures of PIL or tensors"
        )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"images ({path}) does not exist")
        return [path]
    if files := list(images_below(path)):
        return files
    endings = ", ".join(sorted(IMAGES)[:4])
    raise ValueError(f"images ({path}) is a folder with no image in it or below: files with endings such as {endings}")
