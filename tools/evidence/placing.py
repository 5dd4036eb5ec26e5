"""What a study of placed tokens shows: whether placing, or merging, keeps more than dropping patches at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reports import place_study
from patchmerger.reports.parts.numbers import counted, epochs_text, model_text
from patchmerger.reports.pictures.place_study import WORDS
from patchmerger.studies.trained_settings import MERGING_METHODS
from tools.markdown import shown_table

Results = Mapping[str, Any]


def verdict(found: Results) -> str:
    """In a few words: how often placing and merging are above dropping at random, after fine-tuning."""
    rows = [row for row in found["curves"] if row["fine_tuned"] and row["fraction"] < 1 and row["ahead"] is not None]
    placed = [row["ahead"]["low"] > 0 for row in rows if row["method"] not in MERGING_METHODS]
    merged = [row["ahead"]["low"] > 0 for row in rows if row["method"] in MERGING_METHODS]
    first = WORDS[found["settings"]["methods"][0]]
    return (
        f"fine-tuned: placed tokens above {first} in {sum(placed)} of {len(placed)} comparisons, with their intervals; "
        f"merging at the same FLOPs in {sum(merged)} of {len(merged)}"
    )


def scale(found: Results, device: str) -> str:
    """Images, length of the fine-tuning, models and device."""
    images = found["data"].split(":")[0].rsplit("/", 1)[-1]
    epochs = epochs_text(found["settings"]["epochs"])
    return f"{images}, {epochs} of fine-tuning, {counted(len(found['models']), 'model')}, {device}"


def conditions(found: Results) -> str:
    """Data, model and device."""
    where = found["environment"]
    plain = ", ".join(f"{100 * one['accuracy']:.2f}" for one in found["plain"])
    return (
        f"{found['data']}. Model: {model_text(found['model'])}; {counted(len(found['models']), 'plain model')} "
        f"({plain}%). On {where['device_name']}, torch {where['torch']}, timm {where['timm']}."
    )


def table(found: Results) -> str:
    """A row for each number of tokens, training and method."""
    return shown_table(place_study.table(found))


def remarks(found: Results) -> Sequence[str]:
    """What a reader must know of the numbers."""
    lines = []
    if len(found["models"]) == 1:
        lines.append("One model: intervals are over test images and leave out training noise.")
    for budget in found["budgets"].values():
        parts = [
            f"{WORDS[name]}: {merge['num_placed']} → {merge['num_tokens']} after block {merge['after']}"
            for name, merge in budget["merges"].items()
        ]
        if parts:
            lines.append(f"At the FLOPs of {budget['num_tokens']} tokens: {'; '.join(parts)}.")
    oracles = [cell["oracle"] for cell in found["cells"] if cell["oracle"] is not None]
    if oracles:
        lines.append(f"Oracle, on {oracles[0]['images']:,} test images. {found['oracle_warning']}")
    return lines
