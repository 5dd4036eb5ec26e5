"""What a study of accelerations shows: which methods keep most, and what is lost to the plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports.accelerate_study import asked_order, asked_text, difference_of
from patchmerger.reports.parts.numbers import (
    counted,
    difference_text,
    epochs_text,
    method_text,
    model_text,
    spread_text,
)
from patchmerger.reports.pictures.accelerate_study import places_text
from tools.markdown import markdown_table

Results = Mapping[str, Any]


def longest(found: Results) -> list[Mapping[str, Any]]:
    """The rows after the longest recovery, by speed-up, then by keep rate."""
    epochs = max(row["epochs"] for row in found["curves"])
    return sorted((row for row in found["curves"] if row["epochs"] == epochs), key=asked_order)


def verdict(found: Results) -> str:
    """In a few words: whether the first method keeps more than each other one, and what it loses."""
    first, rows = found["settings"]["methods"][0], longest(found)
    lost = [100 * row["difference"]["images"]["mean"] for row in rows if row["method"] == first]
    others = [difference_of(row["behind"]) for row in rows if row["behind"] is not None]
    above = sum(other is not None and other["low"] > 0 for other in others)
    points = ", ".join(f"{value:+.1f}".replace("-", "−") for value in lost)
    ours = [row for row in rows if row["method"] == first]
    times = [f"{row['speedup']:g} times" for row in ours if not row.get("keep_rate")]
    rates = [f"{row['keep_rate']:g}" for row in ours if row.get("keep_rate")]
    asked = [
        *([f"{', '.join(times)} fewer FLOPs"] if times else []),
        *([f"keep rates {', '.join(rates)}"] if rates else []),
    ]
    return (
        f"{method_text(first)} above other methods in {above} of {len(others)} comparisons, with their intervals; "
        f"{points} points to plain at {' and '.join(asked)}"
    )


def scale(found: Results, device: str) -> str:
    """Images, length of the recovery, models and device."""
    images = found["data"].split(":")[0].rsplit("/", 1)[-1]
    length = epochs_text(max(row["epochs"] for row in found["curves"]))
    return f"{images}, {length} of recovery, {counted(len(found['models']), 'model')}, {device}"


def conditions(found: Results) -> str:
    """Data, model and device."""
    where, speed = found["environment"], found["speed"]["environment"]
    plain = ", ".join(f"{100 * one['accuracy']:.2f}" for one in found["plain"])
    tried = sum(len(trials) for trials in found["trials"].values())
    chosen = f", chosen among {tried} by a short recovery on held-out training images" if tried else ""
    return (
        f"{found['data']}. Model: {model_text(found['model'])}; {counted(len(found['models']), 'plain model')} "
        f"({plain}%). Merged {places_text(found)}{chosen}. Trained on {where['device_name']}, torch {where['torch']}, "
        f"timm {where['timm']}; speed on {speed['device_name']}, {found['speed']['precision']}, batches of "
        f"{found['speed']['batch_size']}."
    )


def table(found: Results) -> str:
    """A row for each speed-up and method, after the longest recovery, with what it had before any."""
    first = found["settings"]["methods"][0]
    timings = {timing["name"]: timing for timing in found["speed"]["timings"]}
    before = {(row["method"], asked_text(row)): row for row in found["curves"] if row["epochs"] == 0}
    rows = []
    for row in longest(found):
        timing, start = timings[row["timed_as"]], before.get((row["method"], asked_text(row)))
        rows.append([
            method_text(row["method"]), *_tokens(found, row), f"{timing['predicted_speedup']:.2f}",
            f"{timing['speedup']:.2f}",
            "–" if start is None else f"{100 * start['accuracy']:.1f}",
            spread_text(row["accuracy"], row["sd"]), difference_text(difference_of(row["difference"])),
            f"{100 * row['agreement']:.1f}", difference_text(difference_of(row["behind"])),
        ])  # fmt: skip
    counts = ["tokens"] if _have_tokens(found) else []
    head = [
        "method", *counts, "fewer FLOPs, times", "inference, times as fast", "before recovery, %", "accuracy, %",
        "− plain, points [95% interval]", "agreement, %", f"{method_text(first)} − it, points [95% interval]",
    ]  # fmt: skip
    return markdown_table(head, rows)


def remarks(found: Results) -> Sequence[str]:
    """What a reader must know of the intervals."""
    models, lines = len(found["models"]), []
    if models == 1:
        lines.append("One model: intervals are over test images and leave out training noise.")
    else:
        lines.append(
            f"Intervals are paired, over {models} models; those over the {found['plain'][0]['images']:,} test images "
            "are in the file."
        )
    methods = found["settings"]["methods"]
    if {"cut", "regions"} <= set(methods):
        lines.append(
            "Fewer blocks: the plain model without its last blocks, as few as leave no fewer FLOPs than the merged "
            "model has. Fixed regions: what located queries begin as, with nothing in it learned."
        )
    if _have_tokens(found):
        lines.append(
            "A method that works inside a block does so in the next one, so that all have the same blocks before, and "
            "has as many tokens as bring it nearest to the FLOPs of the merger."
        )
    return lines


def _have_tokens(found: Results) -> bool:
    """Whether methods differ in their tokens; results of before have none of them."""
    return any(row.get("num_tokens") not in (place["num_tokens"], None) for row, place in _placed(found))


def _tokens(found: Results, row: Mapping[str, Any]) -> list[str]:
    """The cell of a row, where there is such a column."""
    return [f"{row['num_tokens'] or '–'}"] if _have_tokens(found) else []


def _placed(found: Results) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The rows of a speed-up, each with its placement."""
    places = found["places"]
    return [(row, places[key]) for row in longest(found) if (key := asked_text(row)) in places]
