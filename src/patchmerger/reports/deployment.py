"""What ``patchmerger bench --formats`` shows: plain and merged models in the runtimes where they are deployed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures.deployment import draw, models_of

_OF = {"predicted": "÷ predicted", "roofline_speedup": "÷ roofline"}


def report(results: Results, picture: Path | None, *, resumable: bool = False, files: Path | None = None) -> int:
    """Draw the picture of ``patchmerger bench --formats``, if one is asked for and all is measured, and print tables.

    ``resumable`` results are in a file, so that the same command goes on with them; ``files`` is the folder of the
    forms that were made, if it is there. The exit status is 130 if it was interrupted.
    """
    finished = results.get("finished", True)
    if picture is not None and finished:
        draw(results, picture)
    console = report_console()
    for table in tables(results):
        print_table(console, table)
    on = "; the same command goes on" if resumable else ""
    kept = f"; files that were made are kept in {files} until all is" if files is not None and files.is_dir() else ""
    left = [] if finished else [f"unfinished: {len(results['rows'])} batch sizes measured{on}{kept}"]
    print_notes(console, *notes(results), *left)
    return 0 if finished else 130


def tables(results: Results) -> list[Table]:
    """For each model and batch size a row for each form."""
    described = {tuple(form["key"].values()): form for form in results["forms"]}
    predictions = ["predicted"]
    if any(timing.get("roofline_speedup") for row in results["rows"] for timing in row["timings"]):
        predictions.append("roofline_speedup")
    columns = [
        "form", "weights", "model", "median,\nms", "p95,\nms", "images/s", "÷ plain\neager", "÷ plain",
        *(_OF[name] for name in predictions), "MiB", "agrees",
    ]  # fmt: skip
    note = "÷: times as fast as plain eager, as plain in the same form, and of what is predicted."
    found = []
    for row in results["rows"]:
        for model in models_of(row):
            timings = [timing for timing in row["timings"] if timing["key"]["model"] == model]
            rows = [_cells(timing, described[tuple(timing["key"].values())], predictions) for timing in timings]
            caption = f"{numbers.model_name(model)}, batch of {row['batch_size']}"
            found.append(Table(caption, columns, rows, note, keys=3))
    return found


def _cells(timing: Results, form: Results, predictions: list[str]) -> list[Cell]:
    key, parity = timing["key"], form["parity"]
    over_eager, over_plain = (timing[name][1] if timing[name] else None for name in ("over_eager", "over_plain"))
    return [
        Cell(key["form"]), Cell(key["precision"]), Cell("merged" if key["merged"] else "plain"),
        cells.number(timing["median"], ",.1f", 1e-3), cells.number(timing["p95"], ",.1f", 1e-3), cells.rate(timing, 1),
        cells.number(over_eager), cells.number(over_plain),
        *(
            cells.number(over_plain / timing[name] if over_plain and timing.get(name) else None)
            for name in predictions
        ),
        cells.number(form["size"], ",.1f", 2**20), cells.number(parity["agreement"] if parity else None, ".1%"),
    ]  # fmt: skip


def notes(results: Results) -> list[str]:
    """What the columns mean, what could not be made, and what it was measured on."""
    where, rows = results["environment"], results["rows"]
    made = [form for form in results["forms"] if not form["error"]]
    lines = [f"not measured: {_name(form['key'])}: {form['error']}" for form in results["forms"] if form["error"]]
    lines += [
        f"{_name(form['key'])}: {len(form['float_layers'])} layers stayed in floating point"
        for form in made
        if form["float_layers"]
    ]
    lines.append(
        "÷ plain eager: times as fast as the plain model in torch, eager, float32; ÷ plain: as the plain model in "
        "the same form and weights; ÷ predicted: that by the FLOPs"
        + ("; ÷ roofline: that by the FLOPs and what passes through memory" if results.get("bandwidth") else "")
    )
    if compared := [form["parity"] for form in made if form["parity"]]:
        images = f"{compared[0]['images']} {compared[0]['source']}"
        lines.append(f"agrees: same class on top as the eager model, of {images}")
    has = [name for name, there in where["arithmetic"].items() if there]
    libraries = [f"{name} {where[name]}" for name in ("torch", "onnxruntime", "openvino", "nncf") if where[name]]
    lines.append(
        f"medians of {results['settings']['rounds']} rounds, all forms interleaved; {where['device_name']}, "
        f"{where['threads']} threads ({', '.join(has)}), load {rows[-1]['load'] if rows else where['load_average']}; "
        f"{', '.join(libraries)}"
    )
    if rates := ", ".join(f"{rate / 1e9:,.0f} in {name}" for name, rate in results["peak_rates"].items()):
        memory = f"; GB a second of a large copy: {found / 1e9:,.1f}" if (found := results.get("bandwidth")) else ""
        lines.append(f"GFLOPs a second of a large matmul on these threads, as torch computes it: {rates}{memory}")
    return lines


def _name(key: Results) -> str:
    """What to call a form in a line of text."""
    model = "merged" if key["merged"] else "plain"
    return f"{numbers.model_name(key['model'])} {model}, {key['form']}, {key['precision']}"


def describe(section: Section, results: Results) -> None:
    """Fill a section with the speed of deployed forms."""
    section.title = section.attempt("title", lambda: _title(results), "Speed where it is deployed")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.charts, "speed-ups", lambda: _chart(results))
    section.add(section.tables, "table", lambda: tables(results))
    section.add(section.missing, "forms that failed", lambda: _failed(results))
    if not results.get("finished", True):
        section.missing.append("further rows (the benchmark was interrupted; the same command goes on)")


def _title(results: Results) -> str:
    names = dict.fromkeys(numbers.model_name(name) for row in results["rows"] for name in models_of(row))
    return f"{', '.join(names)} where it is deployed"


def _best(results: Results) -> Iterator[tuple[int, Results]]:
    """For each batch size the merged model in its best form."""
    for row in results["rows"]:
        timings = [timing for timing in row["timings"] if timing["over_eager"] and timing["key"]["merged"]]
        yield row["batch_size"], max(timings, key=lambda timing: timing["over_eager"][1])


def _verdict(results: Results) -> str:
    parts = [
        f"**{best['over_eager'][1]:.2f} times as fast** at a batch of {batch} ({best['key']['form']}, "
        f"{best['key']['precision']})"
        for batch, best in _best(results)
    ]
    return f"The merged model in its best form against the plain one run eagerly in float32: {' and '.join(parts)}."


def _figures(results: Results) -> list[figures.Figure]:
    return [
        figure
        for batch, best in _best(results)
        for figure in (
            figures.Figure(f"{best['over_eager'][1]:.2f}×", f"as fast as plain eager, batch {batch}"),
            figures.Figure(f"{1e3 * best['median']:,.1f} ms", f"median latency, batch {batch}"),
        )
    ]


def _chart(results: Results) -> charts.Chart:
    rows: list[tuple[str, charts.Point, float | None]] = []
    for row in results["rows"]:
        for timing in (timing for timing in row["timings"] if timing["over_eager"]):
            key, (low, middle, high) = timing["key"], timing["over_eager"]
            name, bar = "merged" if key["merged"] else "plain", (max(middle - low, 0.0), max(high - middle, 0.0))
            facts = [f"median {1e3 * timing['median']:,.1f} ms, 95% of calls within {1e3 * timing['p95']:,.1f} ms"]
            label = f"{name}, {key['form']} {key['precision']}, batch {row['batch_size']}"
            rows.append((label, charts.Point(name, middle, bar=bar, facts=facts), None))
    caption = (
        "Against the plain model run eagerly in float32: median of the paired ratios of interleaved rounds, bars from "
        "quartile to quartile. The dotted line is that model."
    )
    return charts.speed_rows(rows, caption=caption)


def _failed(results: Results) -> list[str]:
    failed = [(form["key"], form["error"]) for form in results["forms"] if form["error"]]
    return [f"{key['form']}, {key['precision']} ({error})" for key, error in failed]
