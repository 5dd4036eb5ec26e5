import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchmerger.data import DataSettings, load_images, read_images
from patchmerger.data.decoding import CLIPPED, FAINT, FRAMES, TRANSPARENT, BadImageError, decode, size_of


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


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "JPEG"])
def test_more_pixels_than_allowed_are_refused_from_the_header(form: str) -> None:
    data = encoded(gradient("RGB"), form)
    for function in (decode, size_of):
        assert function(data, max_pixels=32 * 24) is not None
        with pytest.raises(BadImageError, match=r"32 × 24 pixels are more than max_pixels \(767\)"):
            function(data, max_pixels=32 * 24 - 1)


def test_a_decompression_bomb_takes_no_memory() -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    bomb = header + zlib.crc32(header[12:]).to_bytes(4, "big") + b"\x00\x00\x00\x00IDAT"
    for function in (decode, size_of):
        with pytest.raises(BadImageError, match=r"pixels"):
            function(bomb)


def sixteen(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.linspace(low, high, 64).astype(np.uint16).reshape(8, 8))


def animation() -> bytes:
    frames = [Image.new("L", (4, 4), level) for level in (0, 90, 200)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def clear(mode: str, alpha: int) -> bytes:
    image = gradient("RGBA")
    image.putalpha(alpha)
    return encoded(image.convert(mode), "PNG")


def deep_colours(values: np.ndarray) -> bytes:
    """A PNG of 48 bits a pixel, which PIL reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x10\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


COLOURS = np.arange(48).reshape(4, 4, 3)


@pytest.mark.parametrize(
    ("data", "lost"),
    [
        (encoded(gradient("RGB"), "PNG"), []),
        (clear("RGBA", 255), []),
        (clear("RGBA", 254), [TRANSPARENT]),
        (clear("LA", 0), [TRANSPARENT]),
        (encoded(gradient("P"), "PNG", transparency=bytes(range(256))), [TRANSPARENT]),
        (encoded(Image.new("RGB", (4, 4)), "PNG", transparency=(0, 0, 0)), [TRANSPARENT]),
        (encoded(sixteen(0, 65535), "PNG"), []),
        (encoded(sixteen(0, 4000), "PNG"), [FAINT]),  # 12 bits
        (encoded(sixteen(0, 255), "TIFF"), [FAINT]),  # 8 bits in 16
        (encoded(sixteen(30000, 31000), "TIFF"), [FAINT]),
        (encoded(Image.fromarray(np.full((4, 4), 700, np.uint16)), "PNG"), []),
        (encoded(Image.fromarray(np.array([[-5, 70000]], np.int32)), "TIFF"), [CLIPPED]),
        (deep_colours(COLOURS * 80), [FAINT]),
        (deep_colours(COLOURS * 1300), []),
        (animation(), [FRAMES]),
    ],
)
def test_what_is_lost_is_said(data: bytes, lost: list[str]) -> None:
    said: list[str] = []
    decode(data, lost=said)
    assert said == lost


def test_losses_are_told_once_for_a_dataset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.png").write_bytes(clear("RGBA", 128))
        sixteen(0, 900).save(tmp_path / name / "faint.png")
    for memory_gib, some in ((2, ""), (0, " of 42 looked at")):
        with pytest.warns(UserWarning, match=rf"2{some} images have 16 bits .*40{some} images have trans") as seen:
            images = load_images(DataSettings(str(tmp_path), memory_gib=memory_gib), seed=0)
        assert len(seen) == 1
        assert "have transparent pixels" in images.description


def test_float_files_are_bad_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / name / "x.tiff")
    with pytest.raises(ValueError, match=r"x\.tiff: floating-point pixels have no fixed range: store 8 or 16 bits"):
        read_images(DataSettings(str(tmp_path)))


@pytest.mark.parametrize("memory_gib", [2, 0])
def test_max_pixels_is_an_option(tmp_path: Path, memory_gib: int) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        gradient("RGB").save(tmp_path / name / "x.png")
    with pytest.raises(ValueError, match=r"a/x\.png: 32 × 24 pixels are more than max_pixels \(100\): raise it"):
        read_images(DataSettings(str(tmp_path), max_pixels=100, memory_gib=memory_gib))
