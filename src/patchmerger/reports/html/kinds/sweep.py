"""``patchmerger sweep``: a grid of mergers, by block and number of tokens."""

from __future__ import annotations

from typing import Any

from patchmerger.reports.html.charts import Point, accuracy_against_speed
from patchmerger.reports.html.colours import chart_colours
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Diagram, Figure, Section, Table
from patchmerger.reports.numbers import interval_heading, model_text

_FURTHER = "further"


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a sweep."""
    section.title = section.attempt("title", lambda: _title(results), "A sweep")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.figures += section.attempt("figures", lambda: _figures(results, best), [])
        section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results, best), [])
    section.charts += section.attempt("accuracy against speed", lambda: [_chart(results)], [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])
    for name in results.get("missing") or ():
        section.missing.append(f"{name} (not trained yet)")
    for name, error in (results.get("errors") or {}).items():
        section.missing.append(f"{name} ({error})")


def _title(results: Results) -> str:
    settings = results["settings"]
    return f"{model_text(results['model'])} on {common.source_text(settings['data'])}: {common.seeds_text(settings)}"


def _best(results: Results) -> str:
    cells: Results = results["cells"]
    return max(cells, key=lambda name: cells[name]["metric_mean"])


def _verdict(results: Results, best: str) -> str:
    cell, plain = results["cells"][best], results["plain"]
    return (
        f"Of {len(results['cells'])} mergers, **{best}** ({_place(cell)}) keeps most: it is "
        f"{common.times(_timing(cell))} and {common.change(cell['difference'], results['metric'])}: "
        f"{100 * cell['metric_mean']:.2f}% against {100 * plain['metric_mean']:.2f}%. It was chosen on these test "
        "images, so its accuracy is optimistic."
    )


def _figures(results: Results, best: str) -> list[Figure]:
    cell = results["cells"][best]
    fastest = max(_timing(each)["speedup"] for each in results["cells"].values())
    figures = [Figure(f"{_timing(cell)['speedup']:.2f}×", "as fast as plain, the most accurate")]
    if cell["difference"] is not None:
        figures.append(Figure(*common.difference_figure(cell["difference"], "plain")))
    figures.append(Figure(f"{fastest:.2f}×", "as fast as plain, the fastest"))
    return [*figures, Figure(str(len(results["cells"])), "mergers tried")]


def _diagrams(results: Results, best: str) -> list[Diagram]:
    found = common.diagram(f"Block by block: {best}", results["cells"][best], common.depth_of(results["model"]))
    return [] if found is None else [found]


def _chart(results: Results) -> Chart:
    plain = results["plain"]
    first = next(iter(results["cells"].values()))["speed"]["inference"]
    points = [_point(name, cell) for name, cell in results["cells"].items()]
    return accuracy_against_speed(
        points, common.point("plain", plain, common.timings_of(first)["plain"]), metric=f"test {results['metric']}",
        caption=f"{common.SPEED_CAPTION} Colours are of blocks; the dotted line is plain; the vertical axis does not "
        "begin at 0.",
    )  # fmt: skip


def _point(name: str, cell: Results) -> Point:
    point = common.point(_group(cell), cell, _timing(cell))
    return Point(
        point.name, point.speedup, point.accuracy, point.speed_bar, point.spread, point.uncertain,
        [name, *point.facts],
    )  # fmt: skip


def _group(cell: Results) -> str:
    """What the colour of a cell is of: its block, or that it is beside the grid."""
    return _FURTHER if cell["options"] is None else f"after block {cell['mergers'][0]['after']}"


def _table(results: Results) -> Table:
    cells = {"plain": results["plain"], **results["cells"]}
    groups = {name: "plain" if name == "plain" else _group(cell) for name, cell in cells.items()}
    colours = chart_colours(dict.fromkeys(groups.values()))
    heading = interval_heading("plain", [cell["difference"] for cell in cells.values()]).replace("\n", " ")
    rows = []
    for name, cell in cells.items():
        timing = None if name == "plain" else _timing(cell)
        trained = [Cell(f"{cell['train_seconds']:,.0f}", cell["train_seconds"])]
        rows.append([
            Cell(name, None, colours[groups[name]]), *common.cost_cells(cell), common.metric_cell(cell),
            common.difference_cell(cell["difference"]), common.speed_cell(timing),
            Cell(f"{cell['predicted_speedup']:.2f}", cell["predicted_speedup"]), *trained,
        ])  # fmt: skip
    columns = [
        "merger", "tokens", "GFLOPs", "parameters", f"{results['metric']}, %", heading, "speed-up", "predicted",
        "trained, s",
    ]  # fmt: skip
    return Table("All mergers", columns, rows, "Speed-ups are times as fast as plain; ? marks uncertain ones.")


def _timing(cell: Results) -> Any:
    return next(t for t in cell["speed"]["inference"]["timings"] if t["name"] != "plain")


def _place(cell: Results) -> str:
    return " and ".join(f"{m['num_tokens']} tokens after block {m['after']}" for m in cell["mergers"])
