"""The cells of tables: numbers, differences with their intervals, speeds and costs, each with what it is sorted by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchmerger.reports.parts.numbers import (
    count_text,
    difference_text,
    gflops_text,
    mean_text,
    speed_text,
    spread_text,
)
from patchmerger.reports.parts.tables import Cell

Results = Mapping[str, Any]

SPEED_NOTE = "Speed-ups are times as fast as plain; ? marks uncertain ones."


def number(value: float | None, form: str = ".2f", unit: float = 1) -> Cell:
    """A number in units of ``unit``, written in a form of Python's ``format``; a dash where there is none."""
    return Cell("–" if value is None else format(value / unit, form), value)


def percent(value: float | None, places: int = 2) -> Cell:
    """A share, in per cent."""
    return number(value, f".{places}f", 0.01)


def texts(rows: Iterable[Iterable[str]]) -> list[list[Cell]]:
    """Rows of nothing but words."""
    return [[Cell(text) for text in row] for row in rows]


def difference(found: Results | None) -> Cell:
    """A paired difference with its interval."""
    return Cell(difference_text(found), None if found is None else found["mean"])


def metric(found: Results) -> Cell:
    """A metric over the seeds, in per cent."""
    return Cell(mean_text(found), found["metric_mean"])


def accuracy(found: Results) -> Cell:
    """An accuracy over models, in per cent, with its standard deviation where there are several."""
    return Cell(spread_text(found["accuracy"], found["sd"]), found["accuracy"])


def speed(timing: Results | None) -> Cell:
    """A measured speed-up, with a question mark where it is uncertain."""
    return Cell("–") if timing is None else Cell(speed_text(timing), timing["speedup"])


def rate(timing: Results, places: int = 0) -> Cell:
    """Images a second."""
    return number(timing["images_per_second"], f",.{places}f")


def gflops(flops: float | None) -> Cell:
    """FLOPs, in GFLOPs."""
    return Cell("–" if flops is None else gflops_text(flops), flops)


def memory(count: float | None) -> Cell:
    """Bytes, in MiB."""
    return number(count, ",.0f", 2**20)


def listed(values: Sequence[float], form: str) -> Cell:
    """A number of each merger of a model, sorted by the last; a dash for none."""
    return Cell(", ".join(format(value, form) for value in values) or "–", values[-1] if values else None)


def costs(found: Results) -> list[Cell]:
    """Tokens that go in and, where it merges, come out; FLOPs; parameters."""
    merges = found.get("mergers") and found["tokens_out"] != found["tokens_in"]
    tokens = f"{found['tokens_in']} → {found['tokens_out']}" if merges else str(found["tokens_in"])
    params = Cell(count_text(found["params"]), found["params"])
    return [Cell(tokens, found["tokens_out"]), gflops(found["flops"]), params]
