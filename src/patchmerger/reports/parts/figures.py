"""What a section of a report shows at once: numbers that sum something up, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchmerger.reports.parts.numbers import signed

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number that sums something up: "1.68×", "times as fast as plain"."""

    value: str
    label: str


def difference(found: Results, against: str = "plain") -> Figure:
    """A paired difference."""
    return Figure(signed(100 * found["mean"]), f"points of accuracy against {against}")


def speed(timing: Results, against: str = "plain, inference") -> Figure:
    """A measured speed-up."""
    return Figure(f"{timing['speedup']:.2f}×", f"as fast as {against}")


def agreement(share: float) -> Figure:
    """On how many images a model has the class of the plain one."""
    return Figure(f"{100 * share:.1f}%", "of images: the same class as plain")


@dataclass(frozen=True)
class Picture:
    """An image file as a data URI, inside of the page, and what it shows, in words."""

    source: str
    text: str

    @classmethod
    def read(cls, file: Path, text: str) -> Picture:
        """That of a PNG."""
        return cls(f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}", text)
