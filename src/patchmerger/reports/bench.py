"""What ``patchmerger bench`` shows: measured speed with and without a merger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.diagrams import Diagram, diagram, tokens_of
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures.bench import draw, format_text, merged_timing, rounds_text
from patchmerger.speed.record import RowKey
from patchmerger.speed.settings import compile_name

_COLUMNS = (
    "batch", "plain,\nimages/s", "merged,\nimages/s", "speed-up", "quartiles", "of\nFLOPs", "of\nroofline",
    "plain,\nMiB", "merged,\nMiB", "kept",
)  # fmt: skip
_NOTE = (
    "of FLOPs, of roofline: how much of the speed-up that they predict is attained; kept: activations, merged ÷ plain"
)


def report(results: Results, picture: Path | None, *, resumable: bool = False) -> int:
    """Draw the picture of ``patchmerger bench``, if one is asked for and all is measured, and print the tables.

    ``resumable`` results are in a file, so that the same command goes on with them. The exit status is 130 if it was
    interrupted, 2 if no row was measured.
    """
    if picture is not None and results["finished"]:
        draw(results, picture)
    console = report_console()
    groups: dict[tuple[str, bool, str, str], list[Results]] = {}
    for row in results["rows"]:
        key = row["key"]
        groups.setdefault((key["model"], key["training"], key["device"], format_text(key)), []).append(row)
    for rows in groups.values():
        print_table(console, Table(_title_of(rows), _COLUMNS, [_cells(row) for row in rows]))
        print_notes(console, *(line for row in rows for line in against_lines(row)))
    for profile in profile_tables(results):
        print_table(console, profile)
    print_notes(console, *_notes(results, resumable))
    if not results["finished"]:
        return 130
    return 0 if any(row["measurement"] for row in results["rows"]) else 2


def _title_of(rows: list[Results]) -> str:
    """A model in inference or training, in one number format on one device."""
    first, key = rows[0], rows[0]["key"]
    places = [f"{m} tokens after block {a}" for m, a in zip(first["num_tokens"], first["after"], strict=True)]
    if first["placed"] is not None:
        places.insert(0, f"{first['placed']} placed tokens")
    what = "training step" if key["training"] else "inference"
    predicted = next((merged_timing(row)["predicted_speedup"] for row in rows if row["measurement"]), None)
    by_flops = f"; FLOPs predict {predicted:.2f}×" if predicted else ""
    return f"{key['model']}, {', '.join(places)}: {what}, {format_text(key)}, {key['device']}{by_flops}"


def _cells(row: Results) -> list[Cell]:
    batch = cells.number(row["key"]["batch_size"], ".0f")
    if row["measurement"] is None:
        return [batch, Cell(row["error"].split(" (")[0].split(":")[0][:24]), *[Cell("–")] * (len(_COLUMNS) - 2)]
    timings = numbers.timings_of(row["measurement"])
    plain, merged = timings["plain"], timings["merged"]
    low, high = (1 / ratio for ratio in reversed(merged["ratio_quartiles"]))
    kept = merged["activation_memory"] / plain["activation_memory"] if plain["activation_memory"] else None
    return [
        batch, cells.rate(plain, 1), cells.rate(merged, 1), cells.speed(merged), Cell(f"{low:.2f} … {high:.2f}", low),
        cells.number(merged["of_predicted"] if merged["predicted_speedup"] else None, ".0%"),
        cells.number(merged["of_roofline"] if merged["roofline_speedup"] else None, ".0%"),
        cells.memory(plain["peak_memory"]), cells.memory(merged["peak_memory"]), cells.number(kept),
    ]  # fmt: skip


def against_lines(row: Results) -> Iterator[str]:
    """How another library's merged model does in a row, in words."""
    for other, (middle, (low, high)) in row["merged_against"].items() if row["measurement"] else ():
        speed = numbers.timings_of(row["measurement"])[other]["speedup"]
        yield (
            f"{_label(row)}: {other} is {speed:.2f}× as fast as plain; merged is {middle:.2f}× "
            f"as fast as {other} ({low:.2f} … {high:.2f})"
        )


def profile_tables(results: Results) -> list[Table]:
    """For each profile the parts of a forward pass, plain beside merged."""
    return [_profile(profile) for profile in results.get("profiles") or () if profile.get("error") is None]


def _profile(profile: Results) -> Table:
    plain, rows = {part["name"]: part for part in profile["models"]["plain"]}, []
    for part in profile["models"]["merged"]:
        other = plain.get(part["name"]) or {}
        ratio = {name: other[name] / part[name] if other and part[name] else None for name in ("seconds", "flops")}
        rows.append([
            Cell(part["name"]),
            *(cells.number(each.get(name), form, unit) for each in (other, part)
              for name, form, unit in (("seconds", ".2f", 1e-3), ("share", ".1%", 1))),
            cells.number(part["flops_per_second"], ",.1f", 1e9), cells.number(ratio["seconds"]),
            cells.number(ratio["flops"]),
        ])  # fmt: skip
    columns = ["part", "plain,\nms", "share", "merged,\nms", "share", "GFLOPs/s", "speed-up", "by FLOPs"]
    key = profile["key"]
    setting = f"batch of {key['batch_size']}, {format_text(key)}, {key['device']}"
    return Table(f"{key['model']}, parts of a forward pass, {setting}", columns, rows, folded=True)


def _notes(results: Results, resumable: bool) -> list[str]:
    """What went wrong, how and on what it was measured."""
    from patchmerger.speed.roofline import PeakRates  # with torch, which a page does without

    settings, where = results["settings"], results["environment"]
    failed = [row for row in (*results["rows"], *results["profiles"]) if row["error"]]
    measured = [(RowKey(**row["key"]), merged_timing(row)) for row in results["rows"] if row["measurement"]]
    lines = [f"not measured: {RowKey(**row['key'])}: {row['error']}" for row in failed]
    lines += [f"slower with the merger: {key}: {t['speedup']:.2f}×" for key, t in measured if t["speedup"] < 1]
    lines += [f"uncertain: {key}: {t['uncertain']}" for key, t in measured if t["uncertain"]]
    lines += [_NOTE, *dict.fromkeys(str(PeakRates(**row["peak_rates"])) for row in results["rows"])]
    lines.append(
        f"medians of {rounds_text(results)} rounds after {settings['warmup']} warm-up steps, interleaved; "
        f"{where['device_name']}, {where['threads']} threads, load {where['load_average']}, torch {where['torch']}, "
        f"timm {where['timm']}"
    )
    if not results["finished"]:
        on = "; the same command goes on with the others" if resumable else ""
        lines.append(f"unfinished: {len(measured)} rows measured{on}")
    return lines


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a benchmark."""
    section.title = section.attempt("title", lambda: _title(results), "A benchmark")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.diagrams, "diagram", lambda: _diagrams(results))
    section.add(section.charts, "speed-ups", lambda: _chart(results))
    section.add(section.tables, "table", lambda: table(results))
    section.add(section.tables, "parts of a forward pass", lambda: profile_tables(results))
    section.add(section.missing, "rows that failed", lambda: [
        f"{_label(row)} ({row['error']})" for row in results["rows"] if row["error"]
    ])  # fmt: skip
    if not results.get("finished", True):
        section.missing.append("further rows (the benchmark was interrupted; the same command goes on)")


def _measured(results: Results) -> list[tuple[Any, Any, Any]]:
    """Rows that were measured, with the timings of the plain and of the merged model."""
    timed = [(row, numbers.timings_of(row["measurement"])) for row in results["rows"] if row["measurement"]]
    if not timed:
        raise ValueError("nothing was measured")
    return [(row, timings["plain"], timings["merged"]) for row, timings in timed]


def _title(results: Results) -> str:
    models = ", ".join(dict.fromkeys(numbers.model_name(row["key"]["model"]) for row in results["rows"]))
    return f"{models} on {results['environment']['device_name']}"


def _verdict(results: Results) -> str:
    rows = sorted(_measured(results), key=lambda row: row[2]["speedup"])
    (_, _, slowest), (row, _, fastest) = rows[0], rows[-1]
    predicted = sorted({round(merged["predicted_speedup"], 2) for _, _, merged in rows})
    flops = " to ".join(f"{value:.2f}" for value in dict.fromkeys((predicted[0], predicted[-1])))
    if len(rows) == 1:
        speed = numbers.times_text(fastest)
        return f"With the merger the model is {speed}; FLOPs predict {flops} times ({_label(row)})."
    uncertain = sum(bool(merged["uncertain"]) for _, _, merged in rows)
    remark = f" {uncertain} of these {'is' if uncertain == 1 else 'are'} uncertain." if uncertain else ""
    return (
        f"With the merger the model is **{slowest['speedup']:.2f} to {fastest['speedup']:.2f} times as fast** as plain "
        f"over {len(rows)} settings; FLOPs predict {flops} times. Fastest: {_label(row)}.{remark}"
    )


def _figures(results: Results) -> list[figures.Figure]:
    row, plain, merged = max(_measured(results), key=lambda each: each[2]["speedup"])
    return [
        figures.Figure(f"{merged['speedup']:.2f}×", f"as fast as plain: {_format(row)}"),
        figures.Figure(f"{merged['images_per_second']:,.1f}", f"images/s, of {plain['images_per_second']:,.1f}"),
        figures.Figure(f"{100 * merged['of_predicted']:.0f}%", "of what FLOPs predict"),
    ]


def _diagrams(results: Results) -> list[Diagram]:
    found = {row["key"]["model"]: row for row in reversed(results["rows"])}
    made = [diagram(numbers.model_name(name), tokens_of(row)) for name, row in reversed(found.items())]
    return [each for each in made if each is not None]


def _chart(results: Results) -> charts.Chart:
    rows = []
    for row, plain, merged in _measured(results):
        fact = f"{merged['images_per_second']:,.1f} images/s, plain {plain['images_per_second']:,.1f}"
        point = charts.measured_point("merged", merged, 0.0, None, fact)
        rows.append((_label(row), point, merged["predicted_speedup"]))
    caption = (
        "Median of the paired ratios of interleaved rounds, bars from quartile to quartile; pale bars are uncertain. "
        "Upright marks: what FLOPs predict. The dotted line is plain."
    )
    return charts.speed_rows(rows, caption=caption)


def table(results: Results) -> Table:
    """All rows, each with its model and format."""
    rows = [
        [Cell(numbers.model_name(row["key"]["model"])), Cell(_format(row)), *_cells(row)] for row in results["rows"]
    ]
    return Table("All rows", ["model", "what", *_COLUMNS], rows, f"? marks uncertain speed-ups; {_NOTE}.")


def _format(row: Results) -> str:
    what = "training" if row["key"]["training"] else "inference"
    return f"{what}, {format_text(row['key'])}, {row['key']['device']}"


def _label(row: Results) -> str:
    key = row["key"]
    parts = [
        numbers.model_name(key["model"]), "training" if key["training"] else "", f"batch {key['batch_size']}",
        "" if key["precision"] == "float32" else key["precision"],
        compile_name(key["compile"]) if key["compile"] else "",
    ]  # fmt: skip
    return ", ".join(filter(None, parts))
