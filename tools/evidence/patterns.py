"""What a comparison of reduction patterns shows: whether likeness goes with the accuracy that is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports.parts.numbers import counted
from patchmerger.reports.patterns import MEASURES, correlation_notes, models_table, order_notes, same_methods_tables
from patchmerger.reports.pictures.patterns import names_of, plain_models
from tools.markdown import shown_table

Results = Mapping[str, Any]


def verdict(found: Results) -> str:
    """In a few words: how likeness of features goes with the drop in accuracy, and whether two models agree."""
    names, ranks = names_of(found), {each["model"]: each for each in found["correlations"]}
    if not found["same_methods"]:
        first = ranks[found["models"][0]["name"]]
        known = [
            f"{what} τ = {first[measure]['kendall']['tau']:.2f}"
            for measure, what in MEASURES.items()
            if first[measure] is not None
        ]
        return f"rank correlation with the drop in accuracy: {', '.join(known) or 'none, of too few models'}"
    both = found["same_methods"][0]
    parts = [
        f"{names[model]} τ = {ranks[model]['cka']['kendall']['tau']:.2f}"
        for model in both["models"]
        if ranks[model]["cka"] is not None
    ]
    order = ", ".join(
        f"{_tau(each['drops']):.2f} at keep rate {each['keep_rate']:g}"
        for each in both["drops_by_keep_rate"]
        if each["drops"] is not None
    )
    order = order and f"; drops in one with those in the other τ = {order}"
    return f"CKA with the drop in accuracy: {', '.join(parts)}{order}"


def scale(found: Results, device: str) -> str:
    """Images, models and device."""
    images = found["data"].split(":")[0].rsplit("/", 1)[-1]
    return f"{images}, {found['images']:,} images, {counted(len(found['models']), 'model')}, {device}"


def conditions(found: Results) -> str:
    """Data, models and device."""
    where, plain = found["environment"], plain_models(found) or [found["models"][0]["name"]]
    models = " and ".join(
        f"{model['name']} ({100 * model['accuracy']:.2f}% of these images)"
        for model in found["models"]
        if model["name"] in plain
    )
    return (
        f"{found['images']:,} images of {found['data']}. Methods are put into {models}, without any training. On "
        f"{where['device_name']}, torch {where['torch']}, timm {where['timm']}."
    )


def table(found: Results) -> str:
    """A row for each model, against the first or its own plain one; then the same methods in two plain models."""
    first, *others = [models_table(found), *same_methods_tables(found)]
    return "\n\n".join([shown_table(first), *(f"{one.caption}:\n\n{shown_table(one)}" for one in others)])


def remarks(found: Results) -> Sequence[str]:
    """How alike the methods are, and what that goes with."""
    lines, names, plain = [], names_of(found), {model["name"]: model["plain"] for model in found["models"]}
    within = [pair for pair in found["pairs"] if len({plain[name] for name in pair["models"]}) == 1]
    for measure, what, of in (("iou", "keep", "patches in common"), ("nmi", "merge", "groups in common")):
        pairs = sorted((pair for pair in within if pair[measure] is not None), key=lambda p: -p[measure])
        if len(pairs) > 1:
            ends = [
                f"{' and '.join(names[name] for name in pair['models'])} ({pair[measure]:.2f}{_chance(pair, measure)})"
                for pair in (pairs[0], pairs[-1])
            ]
            lines.append(f"Of methods that {what}, {ends[0]} have most {of}, {ends[1]} least.")
    return [*lines, *correlation_notes(found), *order_notes(found)]


def _tau(rank: Results) -> float:
    return float(rank["kendall"]["tau"])


def _chance(pair: Mapping[str, Any], measure: str) -> str:
    return f"; {pair['iou_by_chance']:.2f} by chance" if measure == "iou" else ""
