"""Whether an exported file gives what the eager model gives: the comparison that every export must pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from patchmerger.exports.settings import ExportSettings

BATCHES = (1, 3, 32)
"""Sizes of the batches that are run, so that a size that was fixed by mistake is seen."""

_LEAST_PROBABILITY = 1e-30


class ParityError(ValueError):
    """The exported file gives other outputs than the eager model; no file was left.

    Attributes:
        parity: What was measured.
    """

    def __init__(self, message: str, parity: Parity) -> None:
        super().__init__(message)
        self.parity = parity


@dataclass(frozen=True)
class Parity:
    """How near an exported file is to the eager model in float32.

    Attributes:
        images: The number of images that both were given.
        source: What they were: "test images of cifar10", or "noise".
        real: Whether they were real images, on which agreement means something.
        largest: The largest difference of a logit.
        mean: The mean difference of a logit.
        spread: Standard deviation of the eager model's logits.
        agreement: The share of images for which both have the same class on top.
        batches: Sizes of the batches that were run.
        sizes: Height and width of the images that were run.
    """

    images: int
    source: str
    real: bool
    largest: float
    mean: float
    spread: float
    agreement: float
    batches: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def relative(self) -> float:
        """The largest difference in standard deviations of the eager model's logits."""
        if math.isnan(self.largest):
            return math.nan
        return self.largest / self.spread if self.spread > 0 else (0.0 if self.largest == 0 else float("inf"))

    def shortfall(self, settings: ExportSettings) -> str | None:
        """What is not within the tolerance, in words; ``None`` where all is."""
        most, least = settings.tolerance
        if not self.relative <= most:  # NaN is no number that is small enough
            return (
                f"the largest difference of a logit is {self.largest:.3g}, {self.relative:.3g} of their standard "
                f"deviation, and max_difference is {most:g}"
            )
        if self.real and self.agreement < least:
            return f"the same class is on top for {self.agreement:.1%} of the images, and min_agreement is {least:g}"
        return None

    def check(self, settings: ExportSettings) -> None:
        """Refuse what is beyond the tolerance.

        Raises:
            ParityError: It is.
        """
        if (shortfall := self.shortfall(settings)) is not None:
            raise ParityError(
                f"the exported {settings.format} ({settings.precision}) differs from the eager model on {self.images} "
                f"{self.source}: {shortfall}; no file was written. A wider format, or a wider tolerance, would do",
                self,
            )


def in_batches(
    run: Callable[[NDArray[np.generic]], NDArray[np.float32]], images: NDArray[np.generic], *, dynamic: bool
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Outputs for all images, in batches of 1, 3, and then 32; one by one where batches have a fixed size.

    And the sizes of the batches.
    """
    sizes: list[int] = []
    while (left := len(images) - sum(sizes)) > 0:
        sizes.append(min(left, BATCHES[min(len(sizes), len(BATCHES) - 1)] if dynamic else 1))
    ends = np.cumsum(sizes)
    outputs = [run(images[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    for output, size in zip(outputs, sizes, strict=True):
        if len(output) != size:
            raise ValueError(f"a batch of {size} images gave {len(output)} outputs: the size of batches was fixed")
    return np.concatenate(outputs), tuple(dict.fromkeys(sizes))


def compare_logits(
    found: NDArray[np.float32], eager: NDArray[np.float32], *, source: str, real: bool, batches: tuple[int, ...]
) -> Parity:
    """Compare the logits of a file with those of the eager model, both (n, C)."""
    if found.shape != eager.shape:
        raise ValueError(f"the exported model gives {found.shape}, the eager one {eager.shape}")
    differences = np.abs(found.astype(np.float64) - eager)
    return Parity(
        images=len(eager),
        source=source,
        real=real,
        largest=float(differences.max()),
        mean=float(differences.mean()),
        spread=float(eager.astype(np.float64).std()),
        agreement=float((found.argmax(axis=1) == eager.argmax(axis=1)).mean()),
        batches=batches,
    )


def compare_probabilities(
    found: NDArray[np.float32], eager: NDArray[np.float32], *, source: str, real: bool, batches: tuple[int, ...]
) -> Parity:
    """Compare the probabilities of a file, ``found``, with the logits of the eager model, both (n, C).

    Their logarithms are compared: a softmax keeps the differences of an image's logits. All below 1e-30 are alike, for
    in float32 a softmax loses the smallest.
    """
    exact = eager.astype(np.float64)
    logarithms = exact - logsumexp(exact, axis=1, keepdims=True)
    least = math.log(_LEAST_PROBABILITY)
    parity = compare_logits(
        np.log(np.maximum(found, np.float32(_LEAST_PROBABILITY))), np.maximum(logarithms, least).astype(np.float32),
        source=source, real=real, batches=batches,
    )  # fmt: skip
    return replace(parity, spread=float((exact - exact.mean(axis=1, keepdims=True)).std()))
