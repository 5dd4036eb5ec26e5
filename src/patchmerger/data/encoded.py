"""Images as they are stored: files, pictures, rows of a table, items of another library's dataset; not decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from patchmerger.data.decoding import Picture


@dataclass(eq=False)
class Encoded:
    """Images that are not decoded yet.

    Attributes:
        items: One an image: the path of its file, a picture, or what ``picture`` takes.
        origin: What to call them in messages; ``None`` for files, which are called by their paths.
        picture: The picture in an item; the item itself by default.
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
