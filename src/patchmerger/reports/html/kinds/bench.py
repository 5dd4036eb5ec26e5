"""``patchmerger bench``: measured speed with and without a merger."""

from __future__ import annotations

from typing import Any

from patchmerger.reports.html.charts import Point, speed_rows
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Diagram, Figure, Section, Table
from patchmerger.reports.numbers import model_name
from patchmerger.speed.settings import compile_name


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a benchmark."""
    section.title = section.attempt("title", lambda: _title(results), "A benchmark")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results), [])
    section.charts += section.attempt("speed-ups", lambda: [_chart(results)], [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])
    section.tables += section.attempt("parts of a forward pass", lambda: _profiles(results), [])
    section.missing += section.attempt("rows that failed", lambda: _failed(results), [])
    if not results.get("finished", True):
        section.missing.append("further rows (the benchmark was interrupted; the same command goes on)")


def _measured(results: Results) -> list[tuple[Any, Any, Any]]:
    """Rows that were measured, with the timings of the plain and of the merged model."""
    found = []
    for row in results["rows"]:
        if row["measurement"]:
            timings = common.timings_of(row["measurement"])
            found.append((row, timings["plain"], timings["merged"]))
    if not found:
        raise ValueError("nothing was measured")
    return found


def _failed(results: Results) -> list[str]:
    return [f"{_label(row)} ({row['error']})" for row in results["rows"] if row["error"]]


def _title(results: Results) -> str:
    models = ", ".join(dict.fromkeys(model_name(row["key"]["model"]) for row in results["rows"]))
    return f"{models} on {results['environment']['device_name']}"


def _verdict(results: Results) -> str:
    rows = _measured(results)
    speeds = sorted((merged["speedup"], _label(row), merged) for row, _, merged in rows)
    predicted = sorted({round(merged["predicted_speedup"], 2) for _, _, merged in rows})
    flops = " to ".join(f"{value:.2f}" for value in dict.fromkeys((predicted[0], predicted[-1])))
    uncertain = sum(bool(merged["uncertain"]) for _, _, merged in rows)
    remark = f" {uncertain} of these {'is' if uncertain == 1 else 'are'} uncertain." if uncertain else ""
    if len(rows) == 1:
        return (
            f"With the merger the model is {common.times(speeds[0][2])}; FLOPs predict {flops} times ({speeds[0][1]})."
        )
    return (
        f"With the merger the model is **{speeds[0][0]:.2f} to {speeds[-1][0]:.2f} times as fast** as plain over "
        f"{len(rows)} settings; FLOPs predict {flops} times. Fastest: {speeds[-1][1]}.{remark}"
    )


def _figures(results: Results) -> list[Figure]:
    row, plain, merged = max(_measured(results), key=lambda each: each[2]["speedup"])
    return [
        Figure(f"{merged['speedup']:.2f}×", f"as fast as plain: {_format(row)}"),
        Figure(f"{merged['images_per_second']:,.1f}", f"images/s, of {plain['images_per_second']:,.1f}"),
        Figure(f"{100 * merged['of_predicted']:.0f}%", "of what FLOPs predict"),
    ]


def _diagrams(results: Results) -> list[Diagram]:
    found: dict[str, Results] = {}
    for row in results["rows"]:
        found.setdefault(row["key"]["model"], row)
    return [
        diagram
        for name, row in found.items()
        if (
            diagram := common.diagram(model_name(name), {key: row[key] for key in ("block_tokens", "tokens_out")}, None)
        )
    ]


def _chart(results: Results) -> Chart:
    rows = [
        (
            _label(row),
            Point("merged", merged["speedup"], 0.0, common.speed_bar(merged), None, bool(merged["uncertain"]),
                  [f"{merged['images_per_second']:,.1f} images/s, plain {plain['images_per_second']:,.1f}"]),
            merged["predicted_speedup"],
        )
        for row, plain, merged in _measured(results)
    ]  # fmt: skip
    caption = (
        "Median of the paired ratios of interleaved rounds, bars from quartile to quartile; pale bars are uncertain. "
        "Upright marks: what FLOPs predict. The dotted line is plain."
    )
    return speed_rows(rows, caption=caption)


def _table(results: Results) -> Table:
    rows = []
    for row, plain, merged in _measured(results):
        low, high = (1 / ratio for ratio in reversed(merged["ratio_quartiles"]))
        memory = merged["peak_memory"]
        rows.append([
            Cell(model_name(row["key"]["model"])), Cell(_format(row)),
            Cell(str(row["key"]["batch_size"]), row["key"]["batch_size"]),
            Cell(f"{plain['images_per_second']:,.1f}", plain["images_per_second"]),
            Cell(f"{merged['images_per_second']:,.1f}", merged["images_per_second"]), common.speed_cell(merged),
            Cell(f"{low:.2f} … {high:.2f}", low),
            Cell(f"{merged['predicted_speedup']:.2f}", merged["predicted_speedup"]),
            _optional(merged["roofline_speedup"]), Cell("–" if memory is None else f"{memory / 2**20:,.0f}", memory),
        ])  # fmt: skip
    columns = [
        "model", "what", "batch", "images/s, plain", "images/s, merged", "speed-up", "quartiles", "by FLOPs",
        "by roofline", "peak memory, MiB",
    ]  # fmt: skip
    return Table("All rows", columns, rows, "Speed-ups are times as fast as plain; ? marks uncertain ones.")


def _profiles(results: Results) -> list[Table]:
    rows = [
        [Cell(_label(profile)), Cell(name), Cell(part["name"]), Cell(f"{1000 * part['seconds']:.2f}", part["seconds"]),
         Cell(f"{100 * part['share']:.1f}", part["share"])]
        for profile in results.get("profiles") or () if profile.get("error") is None
        for name, parts in profile["models"].items() for part in parts
    ]  # fmt: skip
    columns = ["setting", "model", "part", "ms", "share, %"]
    return [Table("Where the time of a forward pass goes", columns, rows, folded=True)] if rows else []


def _format(row: Results) -> str:
    key = row["key"]
    what = "training" if key["training"] else "inference"
    return f"{what}, {key['precision']}, {compile_name(key['compile'])}, {key['device']}"


def _label(row: Results) -> str:
    key = row["key"]
    compiled = f", {compile_name(key['compile'])}" if key["compile"] else ""
    what = "training, " if key["training"] else ""
    precision = "" if key["precision"] == "float32" else f", {key['precision']}"
    return f"{model_name(key['model'])}, {what}batch {key['batch_size']}{precision}{compiled}"


def _optional(value: float | None) -> Cell:
    return Cell("–" if value is None else f"{value:.2f}", value)
