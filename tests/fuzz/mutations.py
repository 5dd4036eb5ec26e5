"""Bad inputs, made of good ones with a seed: bytes that are cut, flipped, spliced; values of other kinds and sizes."""

from __future__ import annotations

import io
import random
from typing import Any

from PIL import Image

MODES = ("RGB", "L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "I", "F", "YCbCr", "HSV")
FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "TGA", "ICO")
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00", b"RIFF", b"PK")
_ABSURD = (0, -1, 1, 2**15, 2**31 - 1, 2**63, 1e308, float("nan"), "", "é" * 300, None, True, [], {}, [[1]], "../..")


def image_bytes(rng: random.Random) -> tuple[bytes, str]:
    """A small picture of a random mode, format, size and EXIF orientation, and the ending of its name."""
    while True:
        mode, kind = rng.choice(MODES), rng.choice(FORMATS)
        size = (rng.randint(1, 40), rng.randint(1, 40))
        try:
            picture = Image.new(mode, size)
            picture.putdata([picture.getpixel((0, 0))] * (size[0] * size[1]))
            options: dict[str, Any] = {}
            if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.3:
                exif = Image.Exif()
                exif[0x0112] = rng.randint(0, 9)
                options["exif"] = exif
            file = io.BytesIO()
            picture.save(file, kind, **options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # no such picture in this format
        return file.getvalue(), {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The same with damage: cut short, bits flipped, a run repeated, zeroed or dropped, another beginning."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        place, length = rng.randrange(len(data)), rng.randint(1, 64)
        kind = rng.randrange(7)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place:place] = data[place : place + length] * rng.randint(1, 8)
        elif kind == 3:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[:8] = rng.choice(
                (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00", b"RIFF", b"PK")
            )
        else:
            data[place : place + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00"))
    return bytes(data)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """JSON-like values with one part that is absurd, of another kind, missing or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        changed, key = dict(value), rng.choice(list(value))
        action = rng.random()
        if action < 0.15:
            del changed[key]
        elif action < 0.25:
            changed[f"{key}x"] = changed.pop(key)
        else:
            changed[key] = mutate_value(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        changed = list(value)
        place = rng.randrange(len(changed))
        changed[place] = mutate_value(changed[place], rng)
        return changed
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return value * rng.choice((-1, 0, 10**6, 0.5))
    return rng.choice(_ABSURD)
