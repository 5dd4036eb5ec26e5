"""Paired differences against scipy and against counting."""

import math

import pytest
from scipy import stats

from patchmerger.runs.statistics import TRAINING_NOISE, mean_sd, over_images, over_seeds


def test_over_seeds_is_the_paired_t_interval_of_scipy():
    ours, theirs = [0.91, 0.95, 0.93, 0.90], [0.92, 0.93, 0.90, 0.91]
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    difference = over_seeds(ours, theirs)
    assert difference.low == pytest.approx(interval.low)
    assert difference.high == pytest.approx(interval.high)
    assert difference.mean == pytest.approx(0.0075)
    assert (difference.over, difference.n, difference.leaves_out) == ("seeds", 4, None)


def test_over_images_counts_the_images_that_only_one_gets_right():
    ours = [True] * 60 + [False] * 40
    theirs = [True] * 50 + [False] * 10 + [True] * 5 + [False] * 35
    difference = over_images(ours, theirs)
    assert difference.mean == pytest.approx((10 - 5) / 100)
    discordant = (10 + 5) / 100 - 0.05**2  # variance of the differences
    assert difference.high - difference.mean == pytest.approx(1.984 * math.sqrt(discordant * 100 / 99 / 100), rel=1e-3)
    assert (difference.over, difference.n, difference.leaves_out) == ("images", 100, TRAINING_NOISE)


def test_identical_values_have_an_interval_of_no_width():
    difference = over_seeds([0.5, 0.6], [0.5, 0.6])
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


@pytest.mark.parametrize("pair", [([0.5], [0.5]), ([0.5, 0.6], [0.5])])
def test_too_few_or_unequal_values_are_refused(pair):
    with pytest.raises(ValueError, match=r"must be equally many values, at least 2"):
        over_seeds(*pair)
    with pytest.raises(ValueError, match=r"must be equally many values, at least 2"):
        over_images(*pair)


def test_mean_sd():
    assert mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    mean, sd = mean_sd([0.7])
    assert mean == 0.7
    assert math.isnan(sd)
