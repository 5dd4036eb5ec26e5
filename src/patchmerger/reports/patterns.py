"""What ``patchmerger patterns`` shows: which patches models keep or merge, how alike they are, what that goes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from patchmerger.reports.parts import cells, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures.patterns import copy_name, draw, names_of, pair_of, plain_models, reference_of

_TOGETHER = {"iou": "IoU of the kept patches", "nmi": "Normalised mutual information of the groups"}
MEASURES = {"cka": "CKA of features", "procrustes": "Procrustes", "iou": "kept patches", "nmi": "groups"}


def report(results: Results, picture: Path | None = None) -> None:
    """Draw the picture of ``patchmerger patterns``, if one is asked for, and print the tables."""
    if picture is not None:
        draw(results, picture)
    console = report_console()
    print_table(console, models_table(results))
    for table in [*_matrices(results), *same_methods_tables(results)]:
        print_table(console, table)
    chance = "In brackets: what sets of these sizes drawn at random would have in common."
    any_chance = any(pair["iou"] is not None for pair in results["pairs"])
    print_notes(console, chance if any_chance else None, *correlation_notes(results), *order_notes(results))


def models_table(results: Results) -> Table:
    """A row for each model: what it costs, and how alike it is to the first one, or to the one it is a copy of."""
    names, rows = names_of(results), []
    for model in results["models"]:
        reference = reference_of(results, model)
        pair = pair_of(results, reference["name"], model["name"])
        drop = None if pair is None else reference["accuracy"] - model["accuracy"]
        rows.append([
            Cell(names[model["name"]]), Cell(stages_text(model)), cells.gflops(model["flops"]),
            cells.percent(model["accuracy"]), cells.percent(drop),
            *(_cell(pair, measure) for measure in ("agreement", "cka", "procrustes")),
        ])  # fmt: skip
    columns = [
        "model", "tokens\nafter block", "GFLOPs", "accuracy,\n%", "drop,\npoints", "agree,\n%", "CKA", "Procrustes"
    ]  # fmt: skip
    data, first = numbers.source_text(results["data"]), names[results["models"][0]["name"]]
    several = "; copies against their own plain model" if len(plain_models(results)) > 1 else ""
    return Table(f"{results['images']:,} images of {data}, against {first}{several}", columns, rows)


def same_methods_tables(results: Results) -> list[Table]:
    """For every two plain models, a row for each method that was put into both."""
    names, tables = names_of(results), []
    for both in results["same_methods"]:
        one, other = (names[name] for name in both["models"])
        rows = [
            [
                Cell(copy_name(method)), *map(cells.percent, method["drops"]),
                *(_cell(method, measure) for measure in ("iou", "nmi", "cka")),
            ]
            for method in both["methods"]
        ]  # fmt: skip
        columns = ["method,\nkeep rate", f"drop in\n{one}", f"drop in\n{other}", "kept\npatches", "groups", "CKA"]
        tables.append(Table(f"The same methods in {one} and in {other}", columns, rows))
    return tables


def stages_text(model: Results) -> str:
    """How many tokens go on after which blocks."""
    return ", ".join(f"{stage['num_tokens']} after {stage['after']}" for stage in model["stages"]) or "all"


def _matrices(results: Results) -> list[Table]:
    """What is kept and merged in common, for every two models that have it; of several plain models, in each."""
    names, plain = names_of(results), plain_models(results)
    if len(plain) < 2:
        return _matrices_of(results, names, "")
    return [
        table
        for name in plain
        for table in _matrices_of(
            results,
            {model["name"]: copy_name(model) for model in results["models"] if model["plain"] == name},
            f", in {names[name]}",
        )
    ]


def _matrices_of(results: Results, names: Mapping[str, str], where: str) -> list[Table]:
    found = []
    for measure, what in _TOGETHER.items():
        pairs = [p for p in results["pairs"] if p[measure] is not None and set(p["models"]) <= set(names)]
        having = [name for name in names if any(name in pair["models"] for pair in pairs)]
        rows = [
            [Cell(names[row]), *(Cell("") if column <= place else _cell(pair_of(results, row, having[column]), measure)
                                 for column in range(1, len(having)))]
            for place, row in enumerate(having[:-1])
        ]  # fmt: skip
        if rows:
            found.append(Table(what + where, ["model", *(names[name] for name in having[1:])], rows))
    return found


def _cell(pair: Results | None, measure: str) -> Cell:
    if pair is None or pair[measure] is None:
        return Cell("–")
    if measure == "agreement":
        return cells.percent(pair[measure], 1)
    chance = f" ({pair['iou_by_chance']:.2f})" if measure == "iou" else ""
    return Cell(f"{pair[measure]:.3f}{chance}", pair[measure])


def correlation_notes(results: Results) -> list[str]:
    """The rank correlations with the accuracy, in sentences."""
    names, lines = names_of(results), []
    of = {None, *(plain_models(results) or [results["models"][0]["name"]])}
    shown = [found for found in results["correlations"] if found["model"] in of]
    for found in shown:
        known = {what: found[measure] for measure, what in MEASURES.items() if found[measure] is not None}
        over = "all pairs, with the size of the difference in accuracy" if found["model"] is None else (
            f"{names[found['model']]} and each {'copy' if len(of) > 2 else 'other model'}, with the drop in accuracy"
        )  # fmt: skip
        if known:
            parts = [
                f"{what} τ = {rank['kendall']['tau']:.2f}, ρ = {rank['spearman']['rho']:.2f} (n = {rank['pairs']})"
                for what, rank in known.items()
            ]
            lines.append(f"Rank correlation (Kendall τ, Spearman ρ) over {over}: {'; '.join(parts)}.")
    if not any(found[measure] for found in shown for measure in MEASURES):
        lines.append("Rank correlations with the drop in accuracy need at least four pairs: name more models.")
    return lines


def order_notes(results: Results) -> list[str]:
    """Whether methods lose as much, in order, in two plain models, in sentences."""
    names, lines = names_of(results), []
    for both in results["same_methods"]:
        one, other = (names[name] for name in both["models"])
        known = [("all", both["drops"])] if len(both["drops_by_keep_rate"]) > 1 else []
        known += [(f"keep rate {each['keep_rate']:g}", each["drops"]) for each in both["drops_by_keep_rate"]]
        parts = [
            f"{what} τ = {rank['kendall']['tau']:.2f}, ρ = {rank['spearman']['rho']:.2f} (n = {rank['pairs']})"
            for what, rank in known
            if rank is not None
        ]
        if parts:
            lines.append(
                f"Rank correlation of the drops in {one} with those of the same methods in {other}: {'; '.join(parts)}."
            )
    return lines


def describe(section: Section, results: Results) -> None:
    """Fill a section with compared patterns."""
    section.title = section.attempt("title", lambda: _title(results), "Patterns of reduction")
    best = section.attempt("verdict", lambda: max(_others(results), key=lambda model: model["accuracy"]), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.add(section.figures, "figures", lambda: _figures(results, best))
    section.add(section.pictures, "picture", lambda: _picture(results))
    section.add(section.tables, "table of models", lambda: models_table(results))
    section.add(section.tables, "table of pairs", lambda: _pairs(results))
    section.add(section.tables, "same methods", lambda: same_methods_tables(results))
    section.add(section.remarks, "order of the methods", lambda: order_notes(results))
    section.add(section.tables, "rank correlations", lambda: _correlations(results))


def _others(results: Results) -> list[Results]:
    """The models that are held against the first: of several plain ones, the copies of the first."""
    first, *others = results["models"]
    return [model for model in others if len(plain_models(results)) < 2 or model["plain"] == first["name"]]


def _title(results: Results) -> str:
    first = names_of(results)[results["models"][0]["name"]]
    return f"{first} and {len(results['models']) - 1} others on {numbers.source_text(results['data'])}"


def _verdict(results: Results, best: Results) -> str:
    names, first = names_of(results), results["models"][0]
    pair = pair_of(results, first["name"], best["name"])
    if pair is None:
        raise ValueError("the pair of the most accurate model is not there")
    drop = 100 * (first["accuracy"] - best["accuracy"])
    change = f"{abs(drop):.2f} points {'less' if drop >= 0 else 'more'} accurate"
    return (
        f"Of {len(_others(results))} models **{names[best['name']]}** is the most accurate: {change} than "
        f"{names[first['name']]} on {results['images']:,} images, with the **same class on "
        f"{100 * pair['agreement']:.1f}%** of them and features that are alike to {pair['cka']:.2f} (CKA)."
    )


def _figures(results: Results, best: Results) -> list[figures.Figure]:
    first = results["models"][0]
    pair: Any = pair_of(results, first["name"], best["name"])
    drop = numbers.signed(100 * (best["accuracy"] - first["accuracy"]))
    return [
        figures.Figure(drop, f"points of accuracy against {names_of(results)[first['name']]}"),
        figures.Figure(f"{first['flops'] / best['flops']:.2f}×", "fewer FLOPs"),
        figures.Figure(f"{pair['cka']:.2f}", "CKA of features"),
    ]


def _picture(results: Results) -> figures.Picture:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "patterns.png"
        draw(results, file)
        return figures.Picture.read(
            file, "Which patches go on in each model, and how alike features are to the drop in accuracy"
        )


def _pairs(results: Results) -> Table:
    names = names_of(results)
    rows = [
        [
            Cell(" – ".join(names[name] for name in pair["models"])),
            *(_cell(pair, measure) for measure in ("agreement", *MEASURES)),
        ]
        for pair in results["pairs"]
    ]
    note = "Kept patches: intersection over union, in brackets that of random sets; groups: mutual information."
    return Table("Every two models", ["pair", "agreement, %", *MEASURES.values()], rows, note, folded=True)


def _correlations(results: Results) -> Table | None:
    names, rows = names_of(results), []
    for found in results["correlations"]:
        of = "all pairs" if found["model"] is None else names[found["model"]]
        for measure, words in MEASURES.items():
            if rank := found[measure]:
                tau, rho = rank["kendall"], rank["spearman"]
                rows.append([
                    Cell(of), Cell(words), cells.number(tau["tau"]), cells.number(tau["p"], ".3f"),
                    cells.number(rho["rho"]), cells.number(rho["p"], ".3f"), cells.number(rank["pairs"], "g"),
                ])  # fmt: skip
    columns = ["pairs of", "measure", "Kendall τ", "p of τ", "Spearman ρ", "p of ρ", "pairs"]
    note = "Of a measure with the drop in accuracy; over all pairs with the size of the difference."
    return Table("Rank correlations with accuracy", columns, rows, note, folded=True) if rows else None
