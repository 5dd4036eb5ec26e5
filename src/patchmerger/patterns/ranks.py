"""Rank correlations: of how alike two models are with the drop in accuracy, and of the drops of two plain models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.stats import kendalltau, spearmanr

Results = Mapping[str, Any]

MEASURES = ("cka", "procrustes", "iou", "nmi")
"""Of a pair of models; the last two where both keep patches, or both put all of them together."""

_LEAST = 4
"""Pairs that a rank correlation is taken over at least."""


def correlations(models: Sequence[Results], pairs: Sequence[Results]) -> list[dict[str, Any]]:
    """Of each measure with the drop in accuracy from one model to the others, and over all pairs (``model`` is None).

    Copies of different plain models are not compared in it, nor is a copy with another plain model than its own.
    """
    plain = {model["name"]: _family(model, models) for model in models}
    related = [pair for pair in pairs if len({plain[name] for name in pair["models"]} - {None}) < 2]
    found = []
    for name in plain:
        own = [pair for pair in related if name in pair["models"]]
        drops = [pair["accuracy_difference"] * (1 if pair["models"][0] == name else -1) for pair in own]
        found.append({"model": name, **{measure: _of_measure(own, measure, drops) for measure in MEASURES}})
    sizes = [abs(pair["accuracy_difference"]) for pair in related]
    return [*found, {"model": None, **{measure: _of_measure(related, measure, sizes) for measure in MEASURES}}]


def same_methods(models: Sequence[Results], pairs: Sequence[Results]) -> list[dict[str, Any]]:
    """For every two plain models, the same methods in both: how alike they are, what each loses, and in which order.

    Returns:
        For each two: ``models``; ``methods``, each with its reducer, keep rate, the drop in accuracy from each plain
        model and the measures; ``drops``, the rank correlation of the two columns of drops; and
        ``drops_by_keep_rate``, that at each keep rate alone: over several, most of it is that lower rates lose more.
    """
    accuracy = {model["name"]: model["accuracy"] for model in models}
    between = {frozenset(pair["models"]): pair for pair in pairs}
    copies: dict[str, dict[tuple[str, float], str]] = {}
    for model in models:
        if model["plain"] is not None:
            copies.setdefault(model["plain"], {})[model["reducer"], model["keep_rate"]] = model["name"]
    found = []
    for two in combinations(copies, 2):
        methods = []
        for reducer, rate in copies[two[0]]:
            names = [copies[plain][reducer, rate] for plain in two]
            pair = between[frozenset(names)]
            methods.append({
                "reducer": reducer, "keep_rate": rate,
                "drops": [accuracy[plain] - accuracy[name] for plain, name in zip(two, names, strict=True)],
                **{measure: pair[measure] for measure in (*MEASURES, "iou_by_chance")},
            })  # fmt: skip
        rates = dict.fromkeys(method["keep_rate"] for method in methods)
        found.append({
            "models": list(two), "methods": methods, "drops": _rank([method["drops"] for method in methods]),
            "drops_by_keep_rate": [
                {"keep_rate": rate, "drops": _rank([m["drops"] for m in methods if m["keep_rate"] == rate])}
                for rate in rates
            ],
        })  # fmt: skip
    return found


def _family(model: Results, models: Sequence[Results]) -> str | None:
    """The plain model that this one is or is a copy of; ``None`` for one that is compared with all."""
    if model["plain"] is None:
        return model["name"] if any(other["plain"] == model["name"] for other in models) else None
    return str(model["plain"])


def _of_measure(pairs: Sequence[Results], measure: str, drops: Sequence[float]) -> dict[str, Any] | None:
    return _rank([(pair[measure], drop) for pair, drop in zip(pairs, drops, strict=True) if pair[measure] is not None])


def _rank(known: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Rank correlation of two columns; ``None`` of too few rows, or where one column is all the same."""
    if len(known) < _LEAST or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return None
    first, second = zip(*known, strict=True)
    kendall, spearman = kendalltau(first, second), spearmanr(first, second)
    return {
        "pairs": len(known),
        "kendall": {"tau": float(kendall.statistic), "p": float(kendall.pvalue)},
        "spearman": {"rho": float(spearman.statistic), "p": float(spearman.pvalue)},
    }
