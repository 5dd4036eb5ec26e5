"""What a measured speed is held against: the targets, and which rows of a benchmark speak for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """A number that the measured speed should reach.

    Attributes:
        what: The quantity, in words.
        goal: The number.
        rows: The rows that it is measured in: ``model``, ``batch_size``, ``training``.
        value: Gives the number of one row, or ``None`` where the row lacks it; the best row counts.
        at_most: Whether ``goal`` is an upper limit.
        percent: Whether it is read as a share.
        measure: In place of ``value``: gives the number of all those rows together, and one of them.
        reason: Why it is missed, where it is.
    """

    what: str
    goal: float
    rows: Mapping[str, Any]
    value: Callable[[Row], float | None] | None = None
    at_most: bool = False
    percent: bool = False
    measure: Callable[[Sequence[Row]], tuple[float, Row] | None] | None = None
    reason: str = ""

    def best(self, results: Iterable[Mapping[str, Any]]) -> tuple[float, Row] | None:
        """The best number among those rows, and its row; ``None`` where none was measured."""
        rows = [
            row
            for result in results
            for row in (*result["rows"], *result["profiles"])
            if all(row["key"][name] == wanted for name, wanted in self.rows.items())
        ]
        if self.measure is not None:
            return self.measure(rows)
        if self.value is None:
            return None
        found = [(value, row) for row in rows if (value := self.value(row)) is not None]
        return (min if self.at_most else max)(found, key=lambda pair: pair[0]) if found else None

    def reached(self, value: float) -> bool:
        """Whether ``value`` is good enough."""
        return value <= self.goal if self.at_most else value >= self.goal


def merged_timing(row: Row) -> Mapping[str, Any] | None:
    """The timing of the merged model in a row; ``None`` in a profile and where the row failed."""
    timings = (row.get("measurement") or {}).get("timings", [])
    return next((timing for timing in timings if timing["name"] == "merged"), None)


def of_flops(row: Row) -> float | None:
    """Attained speed-up / the one that FLOPs predict."""
    timing = merged_timing(row)
    return None if timing is None else timing["of_predicted"]


def of_roofline(row: Row) -> float | None:
    """Attained speed-up / the one that a roofline allows."""
    timing = merged_timing(row)
    return None if timing is None else timing["of_roofline"]


def activations(row: Row) -> float | None:
    """Activation memory, merged ÷ plain."""
    timings = {t["name"]: t["activation_memory"] for t in (row.get("measurement") or {}).get("timings", [])}
    return timings["merged"] / timings["plain"] if timings.get("plain") and timings.get("merged") else None


def mergers_share(row: Row) -> float | None:
    """The mergers' part of a merged forward pass."""
    stages = (row.get("models") or {}).get("merged", [])
    return sum(s["share"] for s in stages if s["name"].startswith("merger")) if stages else None


def each_at_its_best(rows: Sequence[Row]) -> tuple[float, Row] | None:
    """Throughput of the merged model / that of vit-pytorch's, each in the mode that is fastest for it."""
    speeds: dict[str, list[tuple[float, Row]]] = {"merged": [], "vit-pytorch": []}
    for row in rows:
        for timing in (row.get("measurement") or {}).get("timings", []):
            if timing["name"] in speeds and row["merged_against"]:
                speeds[timing["name"]].append((timing["images_per_second"], row))
    if not all(speeds.values()):
        return None
    (ours, row), (theirs, _) = (max(found, key=lambda pair: pair[0]) for found in speeds.values())
    return ours / theirs, row


_SMALL, _BASE, _LARGE_IMAGES = "vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch16_384"


def _rows(model: str, batch_size: int, *, training: bool = False) -> dict[str, Any]:
    return {"model": model, "batch_size": batch_size, "training": training}


TARGETS = (
    Target("attained ÷ predicted, inference, ViT-S/16, batch 32", 0.95, _rows(_SMALL, 32), of_flops),
    Target("attained ÷ predicted, inference, ViT-B/16, batch 32", 0.95, _rows(_BASE, 32), of_flops),
    Target("attained ÷ predicted, inference, ViT-B/16 at 384, batch 8", 0.95, _rows(_LARGE_IMAGES, 8), of_flops),
    Target("attained ÷ predicted, inference, ViT-B/16, batch 1", 0.85, _rows(_BASE, 1), of_flops),
    Target(
        "attained ÷ the roofline's, inference, ViT-B/16, batch 1", 0.95,
        _rows(_BASE, 1), of_roofline,
        reason="after the merge nine rows meet each matrix of weights, which takes the matrix library longer than to "
        "read the weights once, prepacked too; the roofline counts no more than the reading",
    ),
    Target("attained ÷ predicted, training step, ViT-B/16, batch 16", 0.93, _rows(_BASE, 16, training=True), of_flops),
    Target(
        "the merger's share of a merged forward pass, ViT-B/16, batch 32", 0.015,
        _rows(_BASE, 32), mergers_share, at_most=True, percent=True,
    ),
    Target(
        "throughput against vit-pytorch's merged ViT, ViT-B/16, batch 32", 1.3,
        _rows(_BASE, 32), measure=each_at_its_best,
        reason="in float32 on this CPU its plain parts are as quick as timm's: both run the same matrix products, its "
        "without a class token, and ours attains all that the roofline allows, so that nothing is left to win",
    ),
    Target(
        "activation memory of a training step, merged ÷ plain, ViT-B/16, batch 16", 0.56,
        _rows(_BASE, 16, training=True), activations, at_most=True,
    ),
)  # fmt: skip
