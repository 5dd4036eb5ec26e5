"""Any picture as a uint8 RGB tensor: greyscale, alpha, palettes, CMYK, 16 bits and EXIF orientation included."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Picture = bytes | Image.Image
"""A picture as it is stored (the bytes of a file) or as another library hands it over."""


class BadImageError(ValueError):
    """A file or a row that is not an image, or one that is cut off."""


def decode(picture: Picture) -> Tensor:
    """Decodes a picture to RGB.

    Transparency is dropped, as torchvision and timm do; 16-bit values keep their upper 8 bits.

    Args:
        picture: The bytes of an image file, or a PIL image.

    Returns:
        uint8 (3, H, W).

    Raises:
        BadImageError: If it cannot be decoded, with the decoder's reason.
    """
    try:
        with Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture as image:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(_to_rgb(image))  # (H, W, 3)
    except MemoryError:
        raise
    except Exception as error:  # a decoder raises nearly anything on broken bytes
        raise BadImageError(_reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, H, W)


def size_of(picture: Picture) -> tuple[int, int]:
    """Height and width of a picture, from its header alone.

    Raises:
        BadImageError: If the header is not that of an image.
    """
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    try:
        with Image.open(io.BytesIO(picture)) as image:
            return image.height, image.width
    except MemoryError:
        raise
    except Exception as error:  # as in decode
        raise BadImageError(_reason(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point pixels have no fixed range: store 8 or 16 bits")
    if image.mode.startswith("I"):  # greyscale of 16 bits, which PIL would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB is ambiguous to PIL, and it warns
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__
