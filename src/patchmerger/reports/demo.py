"""What ``patchmerger demo`` shows: a ViT trained on digits, and the same made faster."""

from __future__ import annotations

from pathlib import Path

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import demo as picture


def report(results: Results) -> None:
    """Draw the picture into the folder of the results, and print the table."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console, plain = report_console(), results["models"]["plain"]
    print_table(console, table(results))
    print_notes(
        console,
        f"{results['data']}. Merged to {numbers.merges_text([results['placement']])}; "
        f"{numbers.counted(len(plain['accuracies']), 'split')}, {plain['images']} test images each.",
        numbers.left_out_text([results["difference"]]),
        f"Models, results and picture: {results['folder']}",
    )


def table(results: Results) -> Table:
    """Both models side by side."""
    timings, rows = numbers.timings_of(results["speed"]), []
    for name, found in results["models"].items():
        merged, (low, high) = name != "plain", found["interval"]
        timing = timings["accelerated" if merged else "plain"]
        rows.append([
            Cell(name), cells.percent(found["accuracy"]), Cell(f"{100 * low:.2f} … {100 * high:.2f}", low),
            cells.difference(results["difference"] if merged else None),
            cells.percent(results["agreement"] if merged else None, 1), cells.rate(timing), cells.speed(timing),
            cells.number(results["speedup"]["predicted"] if merged else 1.0),
        ])  # fmt: skip
    columns = [
        "model", "accuracy,\n%", "95% interval", "− plain, points\n[95% interval]", "agrees with\nplain, %", "images/s",
        "speed-up", "predicted\nby FLOPs",
    ]  # fmt: skip
    return Table("A trained ViT, made faster", columns, rows, cells.SPEED_NOTE)


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of the demonstration."""
    section.title = section.attempt("title", lambda: _title(results), "The demonstration")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.remarks, "interval", lambda: numbers.over_text(results["difference"]))
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.charts, "accuracy against speed", lambda: _chart(results))
    section.add(section.tables, "table", lambda: table(results))


def _title(results: Results) -> str:
    return f"A ViT on {numbers.source_text(results['data'])}: {numbers.counted(results['settings']['seeds'], 'seed')}"


def _verdict(results: Results) -> str:
    timing, models = numbers.timings_of(results["speed"])["accelerated"], results["models"]
    return (
        f"With {numbers.merges_text([results['placement']])} the model is {numbers.times_text(timing)} and "
        f"{numbers.change_text(results['difference'])}: {100 * models['merged']['accuracy']:.2f}% against "
        f"{100 * models['plain']['accuracy']:.2f}%."
    )


def _figures(results: Results) -> list[figures.Figure]:
    return [
        figures.speed(numbers.timings_of(results["speed"])["accelerated"]),
        figures.difference(results["difference"]),
        figures.agreement(results["agreement"]),
    ]


def _chart(results: Results) -> charts.Chart:
    timing, models = numbers.timings_of(results["speed"])["accelerated"], results["models"]
    plain = charts.Point("plain", 1.0, 100 * models["plain"]["accuracy"])
    merged = charts.measured_point("merged", timing, models["merged"]["accuracy"])
    return charts.accuracy_against([plain, merged], plain.accuracy)
