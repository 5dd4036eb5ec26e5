"""What a comparison of reduction patterns shows: whether likeness goes with the accuracy that is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports.numbers import counted
from patchmerger.reports.patterns import MEASURES, correlation_notes, pair_of, short_names, stages_text

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


def table(found: Results) -> tuple[list[str], list[list[str]]]:
    """A row for each model, against the first."""
    first, rows = found["models"][0], []
    for name, model in zip(short_names([m["name"] for m in found["models"]]), found["models"], strict=True):
        pair = pair_of(found, first["name"], model["name"])
        against = ["–"] * 4
        if pair is not None:
            drop = 100 * (first["accuracy"] - model["accuracy"])
            against = [
                f"{drop:.1f}", f"{100 * pair['agreement']:.1f}", f"{pair['cka']:.3f}", f"{pair['procrustes']:.3f}"
            ]  # fmt: skip
        accuracy = f"{100 * model['accuracy']:.1f}"
        rows.append([name, stages_text(model), f"{model['flops'] / 1e9:.3g}", accuracy, *against])
    head = ["model", "tokens", "GFLOPs", "accuracy, %", "drop, points", "agreement, %", "CKA", "Procrustes"]
    return head, rows


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
