"""One split of a dataset: n images with their targets, in memory or decoded on reading."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from patchmerger.data.decoding import BadImageError, Picture, decode


class Encoded(Protocol):
    """Images as they are stored: files, rows of a table, items of another library's dataset."""

    def __len__(self) -> int:
        """The number of images."""

    def read(self, index: int) -> Picture:
        """The encoded bytes of image ``index``, or the picture that another library made of them."""

    def name(self, index: int) -> str:
        """What to call image ``index`` in a message."""


class Stored(Protocol):
    """Images that are read as uint8 RGB tensors (3, H, W), each of its own size."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``, uint8 (3, H, W)."""


class OnReading:
    """Images that are decoded each time they are read: for datasets that do not fit in memory.

    Args:
        encoded: Where the images come from.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return decode(self.encoded.read(index))
        except BadImageError as error:
            raise BadImageError(
                f"{self.encoded.name(index)} cannot be decoded ({error}). Its header was fine when the data was "
                "checked, so it is probably cut off: repair it or take it away"
            ) from error


class InMemory:
    """Decoded images of any sizes, one after the other in one buffer.

    One buffer, for a list of tensors would cost a file descriptor each when workers are spawned.

    Args:
        images: uint8 tensors (3, H, W).
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

    def all_of_one_size(self) -> Tensor | None:
        """All images as one view (n, 3, H, W), or None where their sizes differ."""
        if len(set(self.sizes)) != 1:
            return None
        return self.buffer.view(len(self), 3, *self.sizes[0])


class ImageSet:
    """Images with their targets.

    Args:
        images: Where the pixels come from.
        targets: Class numbers, int64 (n,), or with several labels an image, float32 zeros and ones (n, C).
        rows: Which of ``images`` belong to this set, in order; all of them by default.
            Sets that are made of one another share their pixels.

    Raises:
        ValueError: If there are not as many targets as images.
    """

    def __init__(self, images: Stored, targets: Tensor, rows: Sequence[int] | None = None) -> None:
        self.images = images
        self.targets = targets
        self.rows = list(range(len(images)) if rows is None else rows)
        if len(self.rows) != len(targets):
            raise ValueError(f"there are {len(self.rows)} images but {len(targets)} targets")
        self._pixels = images.all_of_one_size() if isinstance(images, InMemory) else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index`` as uint8 RGB (3, H, W); not to be written to."""
        row = self.rows[index]
        return self.images[row] if self._pixels is None else self._pixels[row]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where all images are in memory and of one size, else None."""
        return None if self._pixels is None else (self._pixels.shape[2], self._pixels.shape[3])

    def gather(self, indices: Sequence[int]) -> Tensor:
        """Several images of one size at once.

        Args:
            indices: B indices of this set.

        Returns:
            A new uint8 tensor (B, 3, H, W).

        Raises:
            ValueError: If the images are not in memory or not of one size (``size`` is None).
        """
        if self._pixels is None:
            raise ValueError("gather needs images of one size in memory; read them one by one")
        return self._pixels[[self.rows[index] for index in indices]]

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images at ``indices``, in that order, sharing the pixels of this set."""
        rows = list(indices)
        return ImageSet(self.images, self.targets[rows], [self.rows[row] for row in rows])
