"""``patchmerger accelerate-study``: methods times speed-ups times lengths of recovery."""

from __future__ import annotations

from typing import Any

from patchmerger.reports.acceleration_study import asked_order, asked_text, difference_of, method_text, recovery_text
from patchmerger.reports.html.charts import Point, accuracy_against_speed
from patchmerger.reports.html.colours import chart_colours
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Figure, Section, Table
from patchmerger.reports.numbers import counted, interval_heading, model_text

_ACCEPTED = 0.5


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of accelerations."""
    section.title = section.attempt("title", lambda: _title(results), "Accelerations")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.figures += section.attempt("figures", lambda: _figures(results, best), [])
        difference = difference_of(best["difference"])
        section.remarks += [text for text in [section.attempt("interval", lambda: common.over(difference), "")] if text]
    section.charts += section.attempt("accuracy against speed", lambda: _charts(results), [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])


def _title(results: Results) -> str:
    data = common.source_text(results["data"])
    return f"{model_text(results['model'])} on {data}: {counted(len(results['models']), 'trained plain model')}"


def _timing(results: Results, row: Results) -> Any:
    return common.timings_of(results["speed"])[row["timed_as"]]


def _best(results: Results) -> Any:
    """The fastest of the first method after the longest recovery that loses little, else the one that loses least."""
    first = results["settings"]["methods"][0]
    rows = [row for row in results["curves"] if row["method"] == first]
    longest = max(row["epochs"] for row in rows)
    rows = [row for row in rows if row["epochs"] == longest]
    lost = {id(row): -100 * difference_of(row["difference"])["mean"] for row in rows}  # type: ignore[index]
    little = [row for row in rows if lost[id(row)] <= _ACCEPTED]
    if little:
        return max(little, key=lambda row: _timing(results, row)["speedup"])
    return min(rows, key=lambda row: lost[id(row)])


def _verdict(results: Results, row: Results) -> str:
    plain = sum(one["accuracy"] for one in results["plain"]) / len(results["plain"])
    return (
        f"Made faster by **{method_text(row['method'])}** and recovered ({recovery_text(row)}), the models are "
        f"{common.times(_timing(results, row))} and {common.change(difference_of(row['difference']))}: "
        f"{100 * row['accuracy']:.2f}% against {100 * plain:.2f}%."
    )


def _figures(results: Results, row: Results) -> list[Figure]:
    difference = difference_of(row["difference"]) or {}
    return [
        Figure(f"{_timing(results, row)['speedup']:.2f}×", "as fast as plain, inference"),
        Figure(*common.difference_figure(difference, "plain")),
        Figure(f"{100 * row['agreement']:.1f}%", "of images: the same class as plain"),
    ]


def _charts(results: Results) -> list[Chart]:
    """For each recovery one against FLOPs and one against measured speed."""
    found = dict.fromkeys(recovery_text(row) for row in results["curves"] if row["method"] != "plain")
    return [_chart(results, recovery, measured) for recovery in found for measured in (False, True)]


def _chart(results: Results, recovery: str, measured: bool) -> Chart:
    plain = sum(one["accuracy"] for one in results["plain"]) / len(results["plain"])
    points = []
    for row in results["curves"]:
        if row["method"] != "plain" and recovery_text(row) == recovery:
            timing, sd = _timing(results, row), row["sd"]
            speed = timing["speedup"] if measured else timing["predicted_speedup"]
            points.append(
                Point(
                    method_text(row["method"]), speed, 100 * row["accuracy"],
                    common.speed_bar(timing) if measured else (0.0, 0.0), None if sd is None else 100 * sd,
                    measured and bool(timing["uncertain"]),
                    [f"asked for {asked_text(row)}", f"agrees with plain on {100 * row['agreement']:.1f}%"],
                )
            )  # fmt: skip
    speed_caption = f"{common.SPEED_CAPTION} " if measured else ""
    chart = accuracy_against_speed(
        points, Point("plain", 1.0, 100 * plain), metric="test accuracy", connect=not measured,
        unit="times as fast" if measured else "times fewer FLOPs",
        caption=f"{speed_caption}Accuracy: mean ± standard deviation of "
        f"{counted(len(results['models']), 'model')}. The dotted line is plain; the vertical axis does not begin at 0.",
    )  # fmt: skip
    title = "Without recovery" if recovery == "none" else f"Recovered: {recovery}"
    against = "measured speed" if measured else "FLOPs"
    return Chart(f"{title}, against {against}", chart.caption, chart.summary, chart.data, chart.layout, chart.height)


def _table(results: Results) -> Table:
    curves = sorted(results["curves"], key=asked_order)
    colours = chart_colours(dict.fromkeys(["plain", *(method_text(row["method"]) for row in curves)]))
    rows = []
    for row in curves:
        timing, method = _timing(results, row), method_text(row["method"])
        rows.append([
            Cell(method, None, colours[method]), Cell(asked_text(row), row["speedup"] or row["keep_rate"]),
            Cell(recovery_text(row), row["epochs"]), common.speed_cell(timing),
            Cell(f"{timing['predicted_speedup']:.2f}", timing["predicted_speedup"]),
            Cell(f"{100 * row['accuracy']:.2f}", row["accuracy"]),
            common.difference_cell(difference_of(row["difference"])),
            Cell(f"{100 * row['agreement']:.1f}", row["agreement"]),
            common.difference_cell(difference_of(row["behind"])),
        ])  # fmt: skip
    heading = interval_heading("plain", [difference_of(row["difference"]) for row in curves]).replace("\n", " ")
    first = method_text(results["settings"]["methods"][0])
    columns = [
        "method", "asked for", "recovery", "speed-up", "predicted", "accuracy, %", heading, "agreement, %",
        f"{first} − it, points",
    ]  # fmt: skip
    return Table("All methods", columns, rows, "Speed-ups are times as fast as plain; ? marks uncertain ones.")
