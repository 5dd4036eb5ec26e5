"""One split of a dataset: images with their targets, checked, and decoded into memory or on reading."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from patchmerger.data.decoding import BadImageError, Encoded, EncodedSet, Picture, decode, size_of
from patchmerger.data.settings import MAX_PIXELS, DataSettings
from patchmerger.runs.environment import usable_cores
from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu
from patchmerger.runs.text import some_of

T = TypeVar("T")
_SAMPLE = 64
_HASHED = 32
_CHUNK = 256
_SMALL = 3 * 128 * 128
_SHOWN = 10


class Stored(Protocol):
    """Images that are read as uint8 RGB tensors (3, H, W), each of its own size."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``, uint8 (3, H, W)."""


@dataclass(eq=False)
class OnReading:
    """Images that are decoded each time they are read: for datasets that do not fit in memory."""

    encoded: Encoded
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return decode(self.encoded.read(index), max_pixels=self.max_pixels)
        except BadImageError as error:
            raise BadImageError(
                f"{self.encoded.name(index)} cannot be decoded ({error}). Its header was fine when the data was "
                "checked, so it is probably cut off: repair it or take it away"
            ) from error


class InMemory:
    """Decoded images, uint8 (3, H, W) of any sizes, one after the other in one buffer.

    One buffer, for a list of tensors would cost a file descriptor each when workers are spawned.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.sizes = [(image.shape[1], image.shape[2]) for image in images]
        self.starts = [0]
        for height, width in self.sizes:
            self.starts.append(self.starts[-1] + 3 * height * width)
        self.buffer = torch.empty(self.starts[-1], dtype=torch.uint8)
        for row, image in enumerate(images):
            self.buffer[self.starts[row] : self.starts[row + 1]] = image.reshape(-1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        return self.buffer[self.starts[index] : self.starts[index + 1]].view(3, *self.sizes[index])


class ImageSet:
    """Images with their targets, class numbers, int64 (n,), or with several labels an image, float32 (n, C) of 0 and 1.

    ``rows`` are those of ``images`` that belong to this set, in order; all of them by default. Sets that are made of
    one another share their pixels. Where ``random_access`` is false, images cannot be read by their number.

    Raises:
        ValueError: If there are not as many targets as images.
    """

    random_access = True

    def __init__(self, images: Stored, targets: Tensor, rows: Sequence[int] | None = None) -> None:
        self.images = images
        self.targets = targets
        self.rows = list(range(len(images)) if rows is None else rows)
        if len(self.rows) != len(targets):
            raise ValueError(f"there are {len(self.rows)} images but {len(targets)} targets")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index`` as uint8 RGB (3, H, W); not to be written to."""
        return self.images[self.rows[index]]

    def gather(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``, which must be of one size: uint8 (B, 3, H, W)."""
        return torch.stack([self[index] for index in indices])

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order, sharing the pixels of this set."""
        rows = list(indices)
        return ImageSet(self.images, self.targets[rows], [self.rows[row] for row in rows])

    @property
    def sample_hash(self) -> str:
        """A hash of some images, from the first to the last: those of another set may be as many, and called alike."""
        digest = hashlib.sha256()
        with random_state_kept():
            for index in torch.linspace(0, len(self) - 1, min(len(self), _HASHED)).long().tolist():
                seed_everything_on_cpu(key(index))  # a dataset of one's own may draw
                digest.update(self[index].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def drawn(self, count: int, seed: int) -> ImageSet:
        """At most ``count`` images, drawn at random."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count].tolist())


@dataclass(frozen=True)
class BadFile:
    """An image that cannot be read: its split, its file or its row in a table, and what the decoder says."""

    split: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def load_sets(
    encoded: dict[str, EncodedSet], data: DataSettings
) -> tuple[dict[str, ImageSet], tuple[str, ...], tuple[str, ...]]:
    """Decodes small datasets (``memory_gib``) into memory; of large ones reads every header.

    The size is estimated from some images of each split. While decoding, the peak is twice the decoded size. What comes
    back are the splits by name, the bad files that were left out, and what is lost in the others, in words; of large
    datasets, in some of them.

    Raises:
        ValueError: If a file is not an image and ``bad_files`` is ``"error"``.
    """
    lost: list[str] = []
    whole = partial(decode, max_pixels=data.max_pixels, lost=lost)
    header = partial(size_of, max_pixels=data.max_pixels)
    per_image = {name: _bytes_per_image(split.images, header) for name, split in encoded.items()}
    in_memory = sum(per_image[name] * len(split.images) for name, split in encoded.items()) <= data.memory_gib * 2**30
    loaded: dict[str, ImageSet] = {}
    bad: list[BadFile] = []
    for name, split in encoded.items():
        # threads fight for Python's lock over small images: at 32×32 two take longer than one
        threads = 1 if in_memory and per_image[name] < _SMALL else min(8, usable_cores())
        results = _each(whole if in_memory else header, split.images, range(len(split.images)), threads)
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
            _each(whole, split.images, _sample(len(split.images)))
            loaded[name] = ImageSet(OnReading(split.images, data.max_pixels), split.targets[rows], rows)
    if bad and data.bad_files == "error":
        shown = some_of([str(file) for file in bad], _SHOWN, between="\n  ")
        raise ValueError(
            f"{len(bad)} of {sum(len(split.images) for split in encoded.values())} files cannot be read as images:\n"
            f'  {shown}\nTake them away, or leave them out with bad_files="skip"'
        )
    some = "" if in_memory else f" of {sum(len(_sample(len(split.images))) for split in encoded.values())} looked at"
    losses = tuple(f"{count}{some} images {what}" for what, count in sorted(Counter(lost).items()))
    return loaded, tuple(str(file) for file in bad), losses


def _bytes_per_image(images: Encoded, header: Callable[[Picture], tuple[int, int]]) -> float:
    found = _each(header, images, _sample(len(images)))
    sizes = [size for size in found if not isinstance(size, BadImageError)]
    return sum(3 * height * width for height, width in sizes) / max(1, len(sizes))


def _sample(count: int) -> list[int]:
    """Some indices from first to last."""
    return torch.linspace(0, count - 1, min(count, _SAMPLE)).round().long().tolist()


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
