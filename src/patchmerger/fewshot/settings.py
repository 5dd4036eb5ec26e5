"""How few-shot accuracy is measured; without torch, so that the command line can name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FewShotSettings:
    """How few-shot accuracy is measured.

    Attributes:
        shots: Training images of each class, k; several numbers.
        draws: How often they are drawn; mean and standard deviation are taken over the draws.

    Raises:
        ValueError: A number below 1, or one twice.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 5

    def __post_init__(self) -> None:
        shots = tuple(self.shots)
        object.__setattr__(self, "shots", shots)
        if not shots:
            raise ValueError("shots is empty: name at least one number of images a class, such as 10")
        if min(shots) < 1:
            raise ValueError(f"shots ({list(shots)}) must be at least 1 image a class each")
        if len(set(shots)) < len(shots):
            raise ValueError(f"shots ({list(shots)}) names a number twice")
        if self.draws < 1:
            raise ValueError(f"draws ({self.draws}) must be at least 1")
