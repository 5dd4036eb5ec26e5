"""Images as they are stored, and any picture as a uint8 RGB tensor.

Greyscale, alpha, palettes, CMYK, 16 bits and EXIF orientation are included.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from patchmerger.data.settings import MAX_PIXELS

Picture = bytes | Path | Image.Image
"""A picture as it is stored (a file, or the bytes of one) or as another library hands it over."""

TRANSPARENT = "have transparent pixels; their colours are kept and the transparency is dropped"
FAINT = "have 16 bits of which they use less than a sixteenth, and lose nearly all of it: scale them to 8 bits"
CLIPPED = "have values below 0 or above 65535, which are cut off: scale them to 8 bits"
FRAMES = "have several frames, of which the first is read"

_FAINT = 2**12  # of 2**16 values


class BadImageError(ValueError):
    """A file or a row that is not an image, or one that is cut off."""


def decode(picture: Picture, *, max_pixels: int = MAX_PIXELS, lost: list[str] | None = None) -> Tensor:
    """Decodes a picture, an image file, its bytes, or a PIL image (which is not changed), to RGB, uint8 (3, H, W).

    Transparency is dropped, as torchvision and timm do; 16-bit values keep their upper 8 bits. What is lost of the
    picture is added to ``lost``: ``TRANSPARENT``, ``FAINT``, ``CLIPPED``, ``FRAMES``. A picture of more than
    ``max_pixels`` is refused before memory is taken for it.

    Raises:
        BadImageError: If it cannot be decoded, with the decoder's reason.
    """
    with _opened(picture, max_pixels) as image:
        if lost is not None and getattr(image, "n_frames", 1) > 1:
            lost.append(FRAMES)
        deep = any(";16" in str(tile) for tile in getattr(image, "tile", []))  # before it is read
        pixels = np.array(_to_rgb(ImageOps.exif_transpose(image), lost))  # (H, W, 3)
        if lost is not None and deep and image.mode == "RGB" and 0 < int(pixels.max()) - int(pixels.min()) < 16:
            lost.append(FAINT)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def size_of(picture: Picture, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width of a picture, from its header alone; errors and ``max_pixels`` are those of :func:`decode`."""
    with _opened(picture, max_pixels) as image:
        return image.height, image.width


@contextmanager
def _opened(picture: Picture, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its header read; what goes wrong with it is a ``BadImageError``."""
    try:
        if isinstance(picture, Image.Image):
            yield picture
            return
        if picture == b"":
            raise BadImageError("not an image: it is empty")
        if isinstance(picture, Path) and not picture.is_file():
            if picture.is_symlink():
                raise BadImageError(f"a link to {os.readlink(picture)}, which does not exist")
            raise BadImageError("not a regular file" if picture.exists() else "does not exist")
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            if image.width * image.height > max_pixels:
                raise BadImageError(
                    f"{image.width} × {image.height} pixels are more than max_pixels ({max_pixels}): raise it if the "
                    "image is meant to be so large"
                )
            yield image
    except (MemoryError, BadImageError):
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("not an image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"more pixels than any image here may have: {error}") from error
    except Exception as error:  # a decoder raises nearly anything on broken bytes
        raise BadImageError(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image, lost: list[str] | None) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point pixels have no fixed range: store 8 or 16 bits")
    if image.mode.startswith("I"):  # greyscale of 16 bits, which PIL would clip at 255
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if lost is not None:
            lost += [CLIPPED] if low < 0 or high > 65535 else [FAINT] if 0 < high - low < _FAINT else []
        image = Image.fromarray((values.clip(0, 65535) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")  # straight to RGB is ambiguous to PIL, and it warns
        if lost is not None and int(np.asarray(image.getchannel("A")).min()) < 255:
            lost.append(TRANSPARENT)
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(eq=False)
class Encoded:
    """Images that are not decoded yet: paths of files, pictures, or what ``picture`` takes, one an image.

    ``origin`` is what to call them in messages; ``None`` for files, which are called by their paths.
    """

    items: Sequence[Any]
    origin: str | None = None
    picture: Callable[[Any], Picture] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> Picture:
        """The encoded bytes of image ``index``, its path, or the picture that another library made of it."""
        item: Picture = self.items[index]
        return item if self.picture is None else self.picture(item)

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""
        return str(self.items[index]) if self.origin is None else f"image {index} of {self.origin}"


@dataclass(frozen=True)
class EncodedSet:
    """A split of n images; ``targets`` are int64 (n,), or float32 (n, C) with several labels an image."""

    images: Encoded
    targets: Tensor


@dataclass(frozen=True)
class EncodedDataset:
    """A dataset that is found but not decoded, by ``"train"``, ``"validation"`` and ``"test"``.

    Without labels there are no class names. ``remarks`` are what a user should know, such as a folder that is not read.
    """

    splits: dict[str, EncodedSet]
    class_names: tuple[str, ...]
    remarks: tuple[str, ...] = ()
