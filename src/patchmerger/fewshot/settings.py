"""How few-shot accuracy is measured; without torch, so that the command line can name it."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.runs.checks import check_counts


@dataclass(frozen=True)
class FewShotSettings:
    """How few-shot accuracy is measured.

    Attributes:
        shots: Training images of each class, k; several numbers.
        draws: How often they are drawn; mean and standard deviation are taken over the draws.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    draws: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "shots", tuple(self.shots))
        check_counts(self, "shots", advice=", or a list of them")
        check_counts(self, "draws")
        if len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots ({list(self.shots)}) names a number twice")
