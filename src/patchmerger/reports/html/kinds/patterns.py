"""``patchmerger patterns``: which patches models keep or merge, how alike they are, and what that goes with."""

from __future__ import annotations

import base64
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Figure, Picture, Section, Table
from patchmerger.reports.patterns import MEASURES, draw_patterns, pair_of, short_names, stages_text


def describe(section: Section, results: Results) -> None:
    """Fill a section with compared patterns."""
    section.title = section.attempt("title", lambda: _title(results), "Patterns of reduction")
    nearest = section.attempt("verdict", lambda: _nearest(results), None)
    if nearest is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, nearest), "")
        section.figures += section.attempt("figures", lambda: _figures(results, nearest), [])
    section.pictures += section.attempt("picture", lambda: [_picture(results)], [])
    section.tables += section.attempt("table of models", lambda: [_models(results)], [])
    section.tables += section.attempt("table of pairs", lambda: [_pairs(results)], [])
    section.tables += section.attempt("rank correlations", lambda: _correlations(results), [])


def _names(results: Results) -> dict[str, str]:
    """What to call each model."""
    names = [model["name"] for model in results["models"]]
    return dict(zip(names, short_names(names), strict=True))


def _title(results: Results) -> str:
    first = _names(results)[results["models"][0]["name"]]
    return f"{first} and {len(results['models']) - 1} others on {common.source_text(results['data'])}"


def _nearest(results: Results) -> Any:
    """The most accurate model other than the first."""
    return max(results["models"][1:], key=lambda model: model["accuracy"])


def _verdict(results: Results, model: Results) -> str:
    names, first = _names(results), results["models"][0]
    pair = pair_of(results, first["name"], model["name"])
    if pair is None:
        raise ValueError("the pair of the most accurate model is not there")
    drop = 100 * (first["accuracy"] - model["accuracy"])
    change = f"{abs(drop):.2f} points {'less' if drop >= 0 else 'more'} accurate"
    return (
        f"Of {len(results['models']) - 1} models **{names[model['name']]}** is the most accurate: {change} than "
        f"{names[first['name']]} on {results['images']:,} images, with the **same class on "
        f"{100 * pair['agreement']:.1f}%** of them and features that are alike to {pair['cka']:.2f} (CKA)."
    )


def _figures(results: Results, model: Results) -> list[Figure]:
    first = results["models"][0]
    pair = pair_of(results, first["name"], model["name"]) or {}
    drop = 100 * (model["accuracy"] - first["accuracy"])
    return [
        Figure(common.signed(drop), f"points of accuracy against {_names(results)[first['name']]}"),
        Figure(f"{first['flops'] / model['flops']:.2f}×", "fewer FLOPs"),
        Figure(f"{pair['cka']:.2f}", "CKA of features"),
    ]


def _picture(results: Results) -> Picture:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "patterns.png"
        draw_patterns(results, file)
        data = base64.b64encode(file.read_bytes()).decode()
    text = "Which patches go on in each model, and how alike features are to the drop in accuracy"
    return Picture(f"data:image/png;base64,{data}", text)


def _models(results: Results) -> Table:
    names, first = _names(results), results["models"][0]
    rows = []
    for model in results["models"]:
        pair = pair_of(results, first["name"], model["name"])
        drop = 100 * (first["accuracy"] - model["accuracy"])
        rows.append([
            Cell(names[model["name"]]), Cell(stages_text(model)),
            Cell(f"{model['flops'] / 1e9:.3g}", model["flops"]),
            Cell(f"{100 * model['accuracy']:.2f}", model["accuracy"]),
            Cell("–") if pair is None else Cell(f"{drop:.2f}", drop),
            *(_cell(pair, measure) for measure in ("agreement", "cka", "procrustes")),
        ])  # fmt: skip
    columns = ["model", "tokens", "GFLOPs", "accuracy, %", "drop, points", "agreement, %", "CKA", "Procrustes"]
    return Table(f"Against {names[first['name']]}", columns, rows)


def _pairs(results: Results) -> Table:
    names = _names(results)
    rows = [
        [
            Cell(" – ".join(names[name] for name in pair["models"])), _cell(pair, "agreement"),
            *(_cell(pair, measure) for measure in MEASURES),
        ]
        for pair in results["pairs"]
    ]  # fmt: skip
    note = "Kept patches: intersection over union, in brackets that of random sets; groups: mutual information."
    return Table("Every two models", ["pair", "agreement, %", *MEASURES.values()], rows, note, folded=True)


def _correlations(results: Results) -> list[Table]:
    names, rows = _names(results), []
    for found in results["correlations"]:
        for measure, words in MEASURES.items():
            if found[measure] is not None:
                of = "all pairs" if found["model"] is None else names[found["model"]]
                tau, rho = found[measure]["kendall"], found[measure]["spearman"]
                pairs = found[measure]["pairs"]
                rows.append([
                    Cell(of), Cell(words), Cell(f"{tau['tau']:.2f}", tau["tau"]), Cell(f"{tau['p']:.3f}", tau["p"]),
                    Cell(f"{rho['rho']:.2f}", rho["rho"]), Cell(f"{rho['p']:.3f}", rho["p"]), Cell(str(pairs), pairs),
                ])  # fmt: skip
    columns = ["pairs of", "measure", "Kendall τ", "p of τ", "Spearman ρ", "p of ρ", "pairs"]
    note = "Of a measure with the drop in accuracy; over all pairs with the size of the difference."
    return [Table("Rank correlations with accuracy", columns, rows, note, folded=True)] if rows else []


def _cell(pair: Results | None, measure: str) -> Cell:
    if pair is None or pair[measure] is None:
        return Cell("–")
    if measure == "agreement":
        return Cell(f"{100 * pair[measure]:.1f}", pair[measure])
    chance = f" ({pair['iou_by_chance']:.2f})" if measure == "iou" else ""
    return Cell(f"{pair[measure]:.3f}{chance}", pair[measure])
