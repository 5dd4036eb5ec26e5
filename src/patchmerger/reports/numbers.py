"""Numbers as tables and pages have them."""

from __future__ import annotations

from typing import Any


def count_text(count: int) -> str:
    """A number of parameters, to three digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def difference_text(difference: dict[str, Any] | None) -> str:
    """A paired difference in points, with its interval."""
    if difference is None:
        return "–"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def shown_text(difference: dict[str, Any]) -> str:
    """What the interval of a paired difference shows; one that holds 0 does not show that there is no difference."""
    if difference["low"] > 0:
        return "more accurate"
    return "less accurate" if difference["high"] < 0 else "no difference shown"
