"""What is asked of a prediction: how many classes, which share of the images; without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """A share of the images: every ``count``-th of them, so that shares differ by one image at most.

    Attributes:
        number: Which share, counted from 1.
        count: How many shares there are.

    Raises:
        ValueError: ``number`` is not from 1 to ``count``.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(
                f"shard ({self.number}/{self.count}) is none of {self.count} shares: 2/8, say, is the second of eight"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The share that a text names.

        Args:
            text: Number and count, such as "2/8" for the second of eight.

        Raises:
            ValueError: It is not of that form, or out of range.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ValueError(f"shard ({text!r}) must be its number and how many there are, such as 2/8")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this share, in order."""
        return items[self.number - 1 :: self.count]


def check_numbers(top: int, batch_size: int) -> None:
    """Raise ``ValueError`` for less than one class an image, or one image in a batch."""
    if top < 1:
        raise ValueError(f"top ({top}) must be at least 1 class an image")
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1")
