"""What settings have in common is checked by their annotations and in one form of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from patchmerger.runs.checks import check_above, check_at_least, check_choices

Colour = Literal["red", "green"]


@dataclass(frozen=True)
class Settings:
    colour: Colour = "red"
    other: Colour | None = None
    colours: list[Colour] | Colour = "red"
    count: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Further(Settings):
    name: str = "any"


@pytest.mark.parametrize("kind", [Settings, Further])
def test_a_literal_is_one_of_its_values(kind):
    check_choices(kind("green", "red", ["green", "red"]))
    with pytest.raises(ValueError, match=r"colours \('blue'\) must be one of 'red', 'green'"):
        check_choices(kind("green", "red", ["red", "blue"]))
    with pytest.raises(ValueError, match=r"colour \('blue'\) must be one of 'red', 'green'"):
        check_choices(kind("blue"))
    with pytest.raises(ValueError, match=r"colour \(None\) must be one of"):
        check_choices(kind(None))
    with pytest.raises(ValueError, match=r"paint\.other \('blue'\) must be one of"):
        check_choices(kind(other="blue"), "paint.")


def test_bounds():
    check_at_least(1, Settings(), "count", "rate")
    check_at_least(1, Settings(count=1), "count")
    check_above(0, Settings(rate=1e-9), "count", "rate")
    with pytest.raises(ValueError, match=r"count \(0\) must be at least 1"):
        check_at_least(1, Settings(count=0), "count")
    with pytest.raises(ValueError, match=r"it\.count \(-1\) must be 0 or more"):
        check_at_least(0, Settings(count=-1), "count", prefix="it.")
    for rate in (0.0, float("nan")):
        with pytest.raises(ValueError, match=rf"rate \({rate}\) must be above 0"):
            check_above(0, Settings(rate=rate), "rate")
