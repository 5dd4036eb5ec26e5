"""What a comparison of reduction patterns shows: whether likeness goes with the accuracy that is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports.parts.numbers import counted
from patchmerger.reports.patterns import MEASURES, correlation_notes, models_table
from tools.markdown import shown_table

Results = Mapping[str, Any]


def verdict(found: Results) -> str:
    """In a few words: the rank correlations of likeness of features with the drop in accuracy."""
    first = next(ranks for ranks in found["correlations"] if ranks["model"] == found["models"][0]["name"])
    known = [
        f"{what} τ = {first[measure]['kendall']['tau']:.2f}"
        for measure, what in MEASURES.items()
        if first[measure] is not None
    ]
    return f"rank correlation with the drop in accuracy: {', '.join(known) or 'none, of too few models'}"


def scale(found: Results, device: str) -> str:
    """Images, models and device."""
    images = found["data"].split(":")[0].rsplit("/", 1)[-1]
    return f"{images}, {found['images']:,} images, {counted(len(found['models']), 'model')}, {device}"


def conditions(found: Results) -> str:
    """Data, models and device."""
    where, first = found["environment"], found["models"][0]
    return (
        f"{found['images']:,} images of {found['data']}. Methods are put into {first['name']} "
        f"({100 * first['accuracy']:.2f}% of these images), without any training. On {where['device_name']}, torch "
        f"{where['torch']}, timm {where['timm']}."
    )


def table(found: Results) -> str:
    """A row for each model, against the first."""
    return shown_table(models_table(found))


def remarks(found: Results) -> Sequence[str]:
    """How alike the methods are, and what that goes with."""
    lines = []
    for measure, what, of in (("iou", "keep", "patches in common"), ("nmi", "merge", "groups in common")):
        pairs = sorted((pair for pair in found["pairs"] if pair[measure] is not None), key=lambda p: -p[measure])
        if len(pairs) > 1:
            ends = [
                f"{' and '.join(pair['models'])} ({pair[measure]:.2f}{_chance(pair, measure)})"
                for pair in (pairs[0], pairs[-1])
            ]
            lines.append(f"Of methods that {what}, {ends[0]} have most {of}, {ends[1]} least.")
    return [*lines, *correlation_notes(found)]


def _chance(pair: Mapping[str, Any], measure: str) -> str:
    return f"; {pair['iou_by_chance']:.2f} by chance" if measure == "iou" else ""
