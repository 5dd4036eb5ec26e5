"""Which images reduction patterns are compared on, and which methods are put into a model for it; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchmerger.reducers.names import METHODS, ReducerName, check_reducer_name


@dataclass(frozen=True)
class PatternSettings:
    """What reduction patterns are compared on.

    Attributes:
        images: How many images at most, drawn by the seed.
        split: "test" or "validation".
        seed: Draws the images, and fixes what was held out where the data has no split of its own.
        reducers: Methods that work without training, each put into a copy of every model that has no merger, beside
            the models that are given.
        keep_rates: The share of tokens that each of these keeps at each block; several for several models a method.
        after: The blocks that they stand after, counted from 1; by default a quarter, half and three quarters of the
            depth.
    """

    images: int = 1000
    split: Literal["test", "validation"] = "test"
    seed: int = 0
    reducers: tuple[ReducerName, ...] = ()
    keep_rates: tuple[float, ...] = (0.5,)
    after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("reducers", "keep_rates", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.images < 2:
            raise ValueError(f"images ({self.images}) must be at least 2: some hundreds, for features to be compared")
        for reducer in self.reducers:
            check_reducer_name(reducer, "reducers")
            if METHODS[reducer].learned:
                raise ValueError(
                    f"reducers ({reducer!r}) must be trained first: name the folder of a model that has it among the "
                    "models"
                )
        for rate in self.keep_rates:
            if not 0 < rate < 1:
                raise ValueError(f"keep_rates ({rate:g}) must be above 0 and below 1: 0.5, say")
        if self.reducers and not self.keep_rates:
            raise ValueError("keep_rates is empty, but reducers are to be put in: 0.5, say")
        for name in ("reducers", "keep_rates", "after"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} ({', '.join(map(str, getattr(self, name)))}) names one twice")
