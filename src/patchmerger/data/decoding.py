"""Any picture as a uint8 RGB tensor: greyscale, alpha, palettes, CMYK, 16 bits and EXIF orientation included."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Decodes a picture to RGB.

    Transparency is dropped, as torchvision and timm do; 16-bit values keep their upper 8 bits.

    Args:
        picture: An image file, its bytes, or a PIL image (which is not changed).
        max_pixels: What has more is refused before memory is taken for it.
        lost: What is lost of the picture is added to it: ``TRANSPARENT``, ``FAINT``, ``CLIPPED``, ``FRAMES``.

    Returns:
        uint8 (3, H, W).

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
            raise BadImageError(_no_file(picture))
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
            if image.width * image.height > max_pixels:
                raise BadImageError(
                    f"{image.width} × {image.height} pixels are more than max_pixels ({max_pixels}): raise it if the "
                    "image is meant to be so large"
                )
            yield image
    except (MemoryError, BadImageError):
        raise
    except Exception as error:  # a decoder raises nearly anything on broken bytes
        raise BadImageError(_reason(error)) from error


def _no_file(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which does not exist"
    return "not a regular file" if path.exists() else "does not exist"


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


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more pixels than any image here may have: {error}"
    return str(error) or type(error).__name__
