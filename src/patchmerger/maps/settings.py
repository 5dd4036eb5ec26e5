"""What to show of a model's merge maps, as settings that are checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from patchmerger.runs.checks import check_at_least, check_choices

Split: TypeAlias = Literal["train", "validation", "test"]
"""Of a dataset."""


@dataclass(frozen=True)
class ShowSettings:
    """Which images of a dataset to show, and how many to take statistics over.

    Attributes:
        split: Of the dataset, the images to take: "train", "validation" or "test".
        examples: How many images of the dataset to draw, classes in turn.
        limit: How many of its images to take statistics over, at most; 0 for none.
        seed: Chooses the images, and what is held out where the data has no split of its own.
        batch_size: Images in a batch.

    Raises:
        ValueError: A number is out of its range, or there is no such split.
    """

    split: Split = "test"
    examples: int = 8
    limit: int = 1000
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(0, self, "examples", "limit")
        check_at_least(1, self, "batch_size")
        if self.examples == self.limit == 0:
            raise ValueError("examples (0) and limit (0) leave nothing to show: raise one of them")
