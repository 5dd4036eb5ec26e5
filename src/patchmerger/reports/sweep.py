"""What ``patchmerger sweep`` shows: a grid of mergers, by block and number of tokens."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.colours import chart_colours
from patchmerger.reports.parts.diagrams import diagram
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import sweep as picture

_FURTHER = "further"


def report(results: Results) -> int:
    """Draw the picture of ``patchmerger sweep`` into its folder, and print the table; 1 where a cell failed."""
    if not results["missing"]:
        picture.draw(results, Path(results["folder"]) / picture.FILE)
    console = report_console()
    print_table(console, table(results))
    for unit, error in results["errors"].items():
        console.print(f"[bold]failed[/bold] {escape(unit)}: {escape(error)}", soft_wrap=True)
    timings = [
        (f"{name} in {mode}", measured["timings"][1])
        for name, cell in results["cells"].items()
        for mode, measured in (cell["speed"] or {}).items()
    ]
    missing = f"{len(results['missing'])} runs are not done, so speed is not measured and nothing is drawn yet."
    print_notes(
        console, "The same command tries again what failed." if results["errors"] else None,
        missing if results["missing"] else None, numbers.uncertain_text(timings),
        numbers.left_out_text(cell["difference"] for cell in results["cells"].values()),
        numbers.taken_over_text(results), f"Results, picture and models: {results['folder']}",
    )  # fmt: skip
    return 1 if results["errors"] else 0


def table(results: Results) -> Table:
    """The plain model, and a row for each merger; what failed or is not done has no numbers."""
    plain = results["plain"]
    every = {"plain": plain, **results["cells"]}
    groups = {name: "plain" if cell is plain else _group(cell) for name, cell in every.items()}
    colours = chart_colours(dict.fromkeys(groups.values()))
    rows = []
    for name, cell in every.items():
        speed, mergers = cell.get("speed") or {}, (cell["merger"] or {}).values()
        inference, training = (speed[mode]["timings"][1] if speed else None for mode in ("inference", "training"))
        ranks = [merger["effective_rank"] for merger in mergers]
        alike = [merger["similarity"] for merger in mergers if merger["similarity"] is not None]
        merges = ", ".join(f"{m['num_tokens']} after {m['after']}" for m in cell.get("mergers") or ()) or "–"
        rows.append([
            Cell(name, None, colours[groups[name]]), Cell(merges), cells.gflops(cell["flops"]),
            cells.metric(cell), cells.difference(cell["difference"]), cells.speed(inference),
            cells.number(plain["flops"] / cell["flops"]), cells.speed(training),
            cells.number(cell.get("train_seconds"), ",.0f"), cells.listed(ranks, ".1f"), cells.listed(alike, ".2f"),
        ])  # fmt: skip
    settings, heading = (
        results["settings"],
        numbers.interval_heading("plain", [c["difference"] for c in every.values()]),
    )
    columns = [
        "merger", "tokens\nafter block", "GFLOPs", f"{results['metric']},\n%", heading, "speed-up",
        "predicted\nby FLOPs", "speed-up\nin training", "trained,\ns", "rank\nof A", "queries\nalike",
    ]  # fmt: skip
    caption = f"All mergers: {numbers.source_text(settings['data'])}, {numbers.counted(settings['seeds'], 'seed')}"
    return Table(caption, columns, rows, cells.SPEED_NOTE)


def _group(cell: Results) -> str:
    """What the colour of a cell is of: its block, or that it is beside the grid."""
    return _FURTHER if cell["options"] is None else f"after block {cell['merge']['after']}"


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a sweep."""
    section.title = section.attempt("title", lambda: numbers.run_text(results), "A sweep")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.add(section.figures, "figures", lambda: _figures(results, best))
        cell, model = results["cells"][best], results.get("model")
        section.add(section.diagrams, "diagram", lambda: diagram(f"Block by block: {best}", cell, model))
    section.add(section.charts, "accuracy against speed", lambda: _chart(results))
    section.add(section.tables, "table", lambda: table(results))
    section.missing += [f"{name} (not trained yet)" for name in results.get("missing") or ()]
    section.missing += [f"{name} ({error})" for name, error in (results.get("errors") or {}).items()]


def _trained(results: Results) -> dict[str, Results]:
    """The cells whose accuracy and speed are known."""
    known = ("metric_mean", "speed")
    return {name: cell for name, cell in results["cells"].items() if all(cell[key] is not None for key in known)}


def _best(results: Results) -> str:
    trained = _trained(results)
    return max(trained, key=lambda name: trained[name]["metric_mean"])


def _verdict(results: Results, best: str) -> str:
    cell, plain = results["cells"][best], results["plain"]
    return (
        f"Of {len(results['cells'])} mergers, **{best}** ({numbers.merges_text(cell['mergers'])}) keeps most: it is "
        f"{numbers.times_text(_timing(cell))} and {numbers.change_text(cell['difference'], results['metric'])}: "
        f"{100 * cell['metric_mean']:.2f}% against {100 * plain['metric_mean']:.2f}%. It was chosen on these test "
        "images, so its accuracy is optimistic."
    )


def _figures(results: Results, best: str) -> list[figures.Figure]:
    cell, fastest = results["cells"][best], max(map(_timing, _trained(results).values()), key=lambda t: t["speedup"])
    return [
        figures.speed(_timing(cell), "plain, the most accurate"),
        *([] if cell["difference"] is None else [figures.difference(cell["difference"])]),
        figures.speed(fastest, "plain, the fastest"),
        figures.Figure(str(len(results["cells"])), "mergers tried"),
    ]


def _chart(results: Results) -> charts.Chart:
    trained, plain = _trained(results), 100 * results["plain"]["metric_mean"]
    points = [charts.variant_point(_group(cell), cell, _timing(cell), name) for name, cell in trained.items()]
    return charts.accuracy_against(
        [charts.Point("plain", 1.0, plain), *points], plain, metric=f"test {results['metric']}",
        caption=f"{charts.SPEED_CAPTION} Colours are of blocks. {charts.AXES_CAPTION}",
    )  # fmt: skip


def _timing(cell: Results) -> Results:
    return next(t for t in cell["speed"]["inference"]["timings"] if t["name"] != "plain")
