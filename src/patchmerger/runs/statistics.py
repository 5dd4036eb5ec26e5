"""Paired comparison: the difference between two models, with a 95% interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean, stdev

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

TRAINING_NOISE = "training noise (one seed)"
"""What an interval over the images, or the draws, of one training leaves out: another seed gives another model."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the differences between paired values, with a 95% confidence interval.

    Attributes:
        mean: Mean difference.
        low: Lower end of the interval.
        high: Upper end of the interval.
        over: What was paired: "seeds", "images" or "draws".
        n: Number of pairs.
        leaves_out: What the interval knows nothing of: :data:`TRAINING_NOISE` where each model was trained once.
    """

    mean: float
    low: float
    high: float
    over: str
    n: int
    leaves_out: str | None = None


def over_seeds(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Student's t interval over runs, at least two, that share their seed (and so their images, order and split)."""
    return _paired(ours, theirs, "seeds")


def over_images(ours: Sequence[float], theirs: Sequence[float], *, trainings: int = 1) -> PairedDifference:
    """Interval over the test images: for one run each it knows nothing of the spread between seeds.

    Values are, for each test image, whether the model was right, or the share of so many trainings whose model was.
    """
    return _paired(
        [float(a) for a in ours], [float(b) for b in theirs], "images", None if trainings > 1 else TRAINING_NOISE
    )


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else nan


def quartiles(values: ArrayLike) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    low, middle, high = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


def _paired(ours: Sequence[float], theirs: Sequence[float], over: str, left_out: str | None = None) -> PairedDifference:
    """Student's t interval of the paired differences."""
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"ours ({len(ours)}) and theirs ({len(theirs)}) must be equally many values, at least 2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the differences may all be the same
        interval = stats.ttest_rel(ours, theirs).confidence_interval()
    mean = fmean(a - b for a, b in zip(ours, theirs, strict=True))
    return PairedDifference(mean, float(interval.low), float(interval.high), over, len(ours), left_out)
