"""How images are prepared for a model: one type for data, saving, training and acceleration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from patchmerger.runs.checks import check_choices

CropMode: TypeAlias = Literal["center", "squash", "border"]
"""What becomes of images that are not square."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared in evaluation: resize, crop the middle, normalise.

    Attributes:
        mean: Mean of each channel, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        crop_pct: Share of the resized image that is kept, in the middle.
        interpolation: How images are resized: "bicubic", "bilinear", "nearest", "box", "hamming" or "lanczos".
        crop_mode: What becomes of images that are not square, in timm's words: "center" resizes the shorter side and
            cuts the longer one, "squash" resizes both sides alike and keeps all of the image but not its proportions,
            "border" resizes the longer side and fills the rest with the mean.

    Raises:
        ValueError: Another number of channels in ``mean`` than in ``std``, a ``std`` that is not above 0, a
            ``crop_pct`` that is not above 0, an unknown ``interpolation`` or ``crop_mode``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean ({self.mean}) and std ({self.std}) must have one number for each channel")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean ({self.mean}) must be finite and std ({self.std}) above 0 for each channel")
        if not (math.isfinite(self.crop_pct) and self.crop_pct > 0):
            raise ValueError(f"crop_pct ({self.crop_pct}) must be above 0, and is mostly at most 1")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(map(repr, INTERPOLATIONS))
            raise ValueError(f"interpolation ({self.interpolation!r}) must be one of {known}")
        check_choices(self)

    def resized_side(self, image_size: int) -> int:
        """Pixels that a side is resized to, of which the middle ``image_size`` are kept: ⌊S / crop_pct⌋, as in timm.

        A share that was found as one whole number of another gives that number again, for all rounding.
        """
        return math.floor(image_size / self.crop_pct + 1e-6)
