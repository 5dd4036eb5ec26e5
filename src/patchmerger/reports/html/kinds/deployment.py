"""``patchmerger bench --formats``: plain and merged models in the runtimes where they are deployed."""

from __future__ import annotations

from patchmerger.reports.deployment import COLUMNS, form_rows, models_of
from patchmerger.reports.html.charts import Point, speed_rows
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Figure, Section, Table
from patchmerger.reports.numbers import model_name

_TEXTS = 3
"""Columns that say which form it is."""


def describe(section: Section, results: Results) -> None:
    """Fill a section with the speed of deployed forms."""
    section.title = section.attempt("title", lambda: _title(results), "Speed where it is deployed")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.charts += section.attempt("speed-ups", lambda: [_chart(results)], [])
    section.tables += section.attempt("table", lambda: _tables(results), [])
    section.missing += section.attempt("forms that failed", lambda: _failed(results), [])


def _title(results: Results) -> str:
    names = dict.fromkeys(model_name(name) for row in results["rows"] for name in models_of(row))
    return f"{', '.join(names)} where it is deployed"


def _measured(results: Results) -> list[tuple[str, Results, Results]]:
    """A label, the row and the timing of each form that is held against the plain eager model."""
    return [
        (_label(row, timing), row, timing)
        for row in results["rows"]
        for timing in row["timings"]
        if timing["over_eager"]
    ]


def _label(row: Results, timing: Results) -> str:
    key = timing["key"]
    merged = "merged" if key["merged"] else "plain"
    return f"{merged}, {key['form']} {key['precision']}, batch {row['batch_size']}"


def _verdict(results: Results) -> str:
    parts = []
    for row in results["rows"]:
        timings = [t for t in row["timings"] if t["over_eager"] and t["key"]["merged"]]
        best = max(timings, key=lambda timing: timing["over_eager"][1])
        key = best["key"]
        parts.append(
            f"**{best['over_eager'][1]:.2f} times as fast** at a batch of {row['batch_size']} ({key['form']}, "
            f"{key['precision']})"
        )
    return f"The merged model in its best form against the plain one run eagerly in float32: {' and '.join(parts)}."


def _figures(results: Results) -> list[Figure]:
    figures = []
    for row in results["rows"]:
        timings = [t for t in row["timings"] if t["over_eager"] and t["key"]["merged"]]
        best = max(timings, key=lambda timing: timing["over_eager"][1])
        figures.append(Figure(f"{best['over_eager'][1]:.2f}×", f"as fast as plain eager, batch {row['batch_size']}"))
        figures.append(Figure(f"{1e3 * best['median']:,.1f} ms", f"median latency, batch {row['batch_size']}"))
    return figures


def _chart(results: Results) -> Chart:
    rows: list[tuple[str, Point, float | None]] = []
    for label, _, timing in _measured(results):
        low, middle, high = timing["over_eager"]
        name, bar = label.split(",")[0], (max(middle - low, 0.0), max(high - middle, 0.0))
        facts = [f"median {1e3 * timing['median']:,.1f} ms, 95% of calls within {1e3 * timing['p95']:,.1f} ms"]
        rows.append((label, Point(name, middle, 0.0, bar, None, False, facts), None))
    caption = (
        "Against the plain model run eagerly in float32: median of the paired ratios of interleaved rounds, bars from "
        "quartile to quartile. The dotted line is that model."
    )
    return speed_rows(rows, caption=caption)


def _tables(results: Results) -> list[Table]:
    tables = []
    for row in results["rows"]:
        for model in models_of(row):
            rows = [
                [Cell(text, None if place < _TEXTS else _number(text)) for place, text in enumerate(cells)]
                for cells in form_rows(results, row, model)
            ]
            columns = [column or "model" for column in COLUMNS]
            note = "÷: times as fast as plain eager, as plain in the same form, and of what FLOPs predict."
            tables.append(Table(f"{model_name(model)}, batch of {row['batch_size']}", columns, rows, note))
    return tables


def _number(text: str) -> float | None:
    """What a cell is sorted by."""
    written = text.strip("×%").replace(",", "")
    return float(written) if written.replace(".", "", 1).isdigit() else None


def _failed(results: Results) -> list[str]:
    return [
        f"{form['key']['form']}, {form['key']['precision']} ({form['error']})"
        for form in results["forms"]
        if form["error"]
    ]
