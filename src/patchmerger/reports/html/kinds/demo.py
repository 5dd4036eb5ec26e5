"""``patchmerger demo``: a ViT trained on digits, and the same made faster."""

from __future__ import annotations

from patchmerger.reports.html.charts import Point, accuracy_against_speed
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Figure, Section, Table
from patchmerger.reports.numbers import counted


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of the demonstration."""
    section.title = section.attempt("title", lambda: _title(results), "The demonstration")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.remarks += section.attempt("interval", lambda: [common.over(results["difference"])], [])
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.charts += section.attempt("accuracy against speed", lambda: [_chart(results)], [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])


def _title(results: Results) -> str:
    return f"A ViT on {common.source_text(results['data'])}: {counted(results['settings']['seeds'], 'seed')}"


def _verdict(results: Results) -> str:
    place, models = results["placement"], results["models"]
    timing = common.timings_of(results["speed"])["accelerated"]
    return (
        f"With {place['num_tokens']} tokens after block {place['after']} the model is {common.times(timing)} and "
        f"{common.change(results['difference'])}: {100 * models['merged']['accuracy']:.2f}% against "
        f"{100 * models['plain']['accuracy']:.2f}%."
    )


def _figures(results: Results) -> list[Figure]:
    return [
        Figure(f"{common.timings_of(results['speed'])['accelerated']['speedup']:.2f}×", "as fast as plain, inference"),
        Figure(*common.difference_figure(results["difference"], "plain")),
        Figure(f"{100 * results['agreement']:.1f}%", "of images: the same class as plain"),
    ]


def _chart(results: Results) -> Chart:
    timing, models = common.timings_of(results["speed"])["accelerated"], results["models"]
    merged = Point(
        "merged", timing["speedup"], 100 * models["merged"]["accuracy"], common.speed_bar(timing), None,
        bool(timing["uncertain"]),
    )  # fmt: skip
    plain = Point("plain", 1.0, 100 * models["plain"]["accuracy"])
    caption = f"{common.SPEED_CAPTION} The dotted line is plain; the vertical axis does not begin at 0."
    return accuracy_against_speed([merged], plain, metric="test accuracy", caption=caption)


def _table(results: Results) -> Table:
    timings = common.timings_of(results["speed"])
    rows = []
    for name, found in results["models"].items():
        timing, (low, high) = timings["plain" if name == "plain" else "accelerated"], found["interval"]
        rows.append([
            Cell(name), Cell(f"{100 * found['accuracy']:.2f}", found["accuracy"]),
            Cell(f"{100 * low:.2f} … {100 * high:.2f}", low),
            Cell(f"{timing['images_per_second']:,.0f}", timing["images_per_second"]), common.speed_cell(timing),
        ])  # fmt: skip
    columns = ["model", "accuracy, %", "95% interval", "images/s", "speed-up"]
    return Table("Both models", columns, rows, "Speed-ups are times as fast as plain; ? marks uncertain ones.")
