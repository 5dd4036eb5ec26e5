"""Encoded splits in, ImageSets out: what to keep in memory, and which files are bad."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from patchmerger.data.decoding import BadImageError, Picture, decode, size_of
from patchmerger.data.images import Encoded, ImageSet, InMemory, OnReading
from patchmerger.data.settings import BadFiles
from patchmerger.runs.environment import usable_cores

T = TypeVar("T")
_SAMPLE = 64
_CHUNK = 256
_SMALL = 3 * 128 * 128
_SHOWN = 10


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
class BadFile:
    """An image that cannot be read.

    Attributes:
        split: The split that it is in.
        name: Its file, or its row in a table.
        reason: What the decoder says.
    """

    split: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def load_sets(
    encoded: dict[str, EncodedSet], *, memory_limit: float, bad_files: BadFiles
) -> tuple[dict[str, ImageSet], list[BadFile]]:
    """Decodes small datasets into memory; of large ones reads every header.

    The size is estimated from some images of each split. While decoding, the peak is twice the decoded size.

    Args:
        encoded: The splits by name.
        memory_limit: Most bytes of decoded pixels, all splits together, to keep in memory.
        bad_files: ``"error"`` to refuse data with a bad file, ``"skip"`` to leave such files out.

    Returns:
        The splits by name, and the bad files that were left out.

    Raises:
        ValueError: If a file is not an image and ``bad_files`` is ``"error"``.
    """
    per_image = {name: _bytes_per_image(split.images) for name, split in encoded.items()}
    in_memory = sum(per_image[name] * len(split.images) for name, split in encoded.items()) <= memory_limit
    loaded: dict[str, ImageSet] = {}
    bad: list[BadFile] = []
    for name, split in encoded.items():
        # threads fight for Python's lock over small images: at 32×32 two take longer than one
        threads = 1 if in_memory and per_image[name] < _SMALL else min(8, usable_cores())
        results = _each(decode if in_memory else size_of, split.images, range(len(split.images)), threads)
        rows = [row for row, result in enumerate(results) if not isinstance(result, BadImageError)]
        bad += [
            BadFile(name, split.images.name(row), str(result))
            for row, result in enumerate(results)
            if isinstance(result, BadImageError)
        ]
        if in_memory:
            pixels = InMemory([image for image in results if isinstance(image, Tensor)])
            loaded[name] = ImageSet(pixels, split.targets[rows])
        else:
            loaded[name] = ImageSet(OnReading(split.images), split.targets[rows], rows)
    if bad and bad_files == "error":
        shown = "\n  ".join(str(file) for file in bad[:_SHOWN])
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {sum(len(split.images) for split in encoded.values())} files cannot be read as images:"
            f'\n  {shown}{more}\nTake them away, or leave them out with bad_files="skip"'
        )
    return loaded, bad


def _bytes_per_image(images: Encoded) -> float:
    count = len(images)
    sample = torch.linspace(0, count - 1, min(count, _SAMPLE)).round().long().tolist()
    sizes = [size for size in _each(size_of, images, sample) if not isinstance(size, BadImageError)]
    return sum(3 * height * width for height, width in sizes) / max(1, len(sizes))


def _each(
    function: Callable[[Picture], T], images: Encoded, rows: Iterable[int], threads: int = 1
) -> list[T | BadImageError]:
    """``function`` of each image, or the error in its place."""

    def one(row: int) -> T | BadImageError:
        try:
            return function(images.read(row))
        except BadImageError as error:
            return error
        except OSError as error:  # an unreadable file
            return BadImageError(str(error))

    def chunk(part: list[int]) -> list[T | BadImageError]:
        return [one(row) for row in part]

    everything = list(rows)
    parts = [everything[start : start + _CHUNK] for start in range(0, len(everything), _CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        return [result for part in pool.map(chunk, parts) for result in part]
