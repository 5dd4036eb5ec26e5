import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchmerger.data.decoding import BadImageError, decode, size_of


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(mode: str) -> Image.Image:
    """Smooth, so that JPEG changes little."""
    rows, columns = np.mgrid[0:24, 0:32]
    pixels = np.stack([rows * 8, columns * 6, (rows + columns) * 4], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
def test_every_mode_of_png_becomes_rgb(mode: str) -> None:
    image = gradient(mode)
    result = decode(encoded(image, "PNG"))
    assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 24, 32))
    assert result.is_contiguous()
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("mode", "tolerance"), [("RGB", 12), ("L", 3), ("CMYK", 12)])
def test_every_mode_of_jpeg_becomes_rgb(mode: str, tolerance: int) -> None:
    image = gradient(mode)
    result = decode(encoded(image, "JPEG", quality=95, subsampling=0))
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert (result.int() - expected.int()).abs().max() <= tolerance


def test_palette_with_transparency() -> None:
    image = gradient("P")
    assert decode(encoded(image, "PNG", transparency=bytes(range(256)))).shape == (3, 24, 32)


def test_16_bits_keep_their_upper_8() -> None:
    values = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    result = decode(encoded(Image.fromarray(values), "PNG"))
    assert result[0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert torch.equal(result[0], result[2])


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_orientation_is_respected(form: str) -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees: left becomes top
    result = decode(encoded(image, form, exif=exif))
    assert tuple(result.shape) == (3, 16, 8)
    assert result[:, :7].float().mean() > 240
    assert result[:, 9:].float().mean() < 15


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_file_that_is_cut_off_is_bad(form: str) -> None:
    data = encoded(gradient("RGB"), form)
    with pytest.raises(BadImageError, match=r"(?i)truncated"):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff and no more"])
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadImageError, match="not an image"):
        decode(data)
    with pytest.raises(BadImageError, match="not an image"):
        size_of(data)


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(BadImageError, match="floating-point pixels have no fixed range"):
        decode(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_size_is_height_and_width() -> None:
    assert size_of(encoded(gradient("L"), "PNG")) == size_of(gradient("L")) == (24, 32)
