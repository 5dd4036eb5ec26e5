"""Dataclasses to JSON values and back, with their own checks and the name of what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from patchmerger.runs.serialisation import from_json, to_json


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    scale: tuple[float, float] = (0.1, 1.0)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate ({self.rate}) must be 0 or more")


@dataclass(frozen=True)
class Outer:
    inner: Inner | Literal["auto"] | None = "auto"
    place: Path | None = None
    counts: int | list[int] = 8
    args: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    "value", [Outer(), Outer(Inner(2, (0.5, 1)), Path("x/y"), [1, 2], {"depth": 3, "names": ["a"]}), Outer(None)]
)
def test_what_is_written_is_read_back(value):
    assert from_json(Outer, to_json(value)) == value
    assert to_json({"s": value, "many": (1, value)}) == {"s": to_json(value), "many": [1, to_json(value)]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"inner": {"rate": -1.0}}, r"rate \(-1.0\) must be 0 or more"),
        ({"counts": "many"}, r"counts"),
        ({"count": 1}, r"count: "),
        ([1], r"this is no Outer"),
    ],
)
def test_what_is_wrong_is_named(value, text):
    with pytest.raises(ValueError, match=text):
        from_json(Outer, value)


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match=r"cannot be kept as JSON.*object"):
        to_json({"bad": object()})
