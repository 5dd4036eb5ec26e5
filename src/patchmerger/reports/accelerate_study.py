"""What ``patchmerger accelerate-study`` shows: methods times speed-ups times lengths of recovery."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.colours import chart_colours
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import accelerate_study as picture
from patchmerger.reports.pictures.accelerate_study import recovery_text

_ACCEPTED = 0.5


def report(results: Results) -> None:
    """Draw the picture of ``patchmerger accelerate-study`` into its folder, and print the table."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console = report_console()
    print_table(console, table(results))
    console.print(results["data"], soft_wrap=True)
    timings = numbers.timings_of(results["speed"]).items()
    uncertain = numbers.uncertain_text((name, timing) for name, timing in timings if name != "plain")
    left_out = numbers.left_out_text(difference_of(row["difference"]) for row in results["curves"])
    taken_over = numbers.taken_over_text(results)
    print_notes(console, uncertain, left_out, taken_over, f"Results and picture: {results['folder']}")


def asked_order(row: Results) -> tuple[float, float]:
    """Sorts rows by wanted speed-up, then those of keep rates from the largest rate to the smallest."""
    return (float("inf"), -row["keep_rate"]) if row.get("keep_rate") else (row["speedup"], 0.0)


def asked_text(row: Results) -> str:
    """The wanted speed-up, or the keep rate."""
    return f"keep {row['keep_rate']:g}" if row.get("keep_rate") else f"{row['speedup']:g}"


def difference_of(found: Results | None) -> Mapping[str, Any] | None:
    """A difference with its interval over the models, where there are several, or else over the images."""
    return None if found is None else found.get("models") or found["images"]


def table(results: Results) -> Table:
    """A row for each speed-up, method and recovery."""
    curves = sorted(results["curves"], key=asked_order)
    colours = chart_colours(dict.fromkeys(["plain", *(numbers.method_text(row["method"]) for row in curves)]))
    short = len({row["scope"] for row in curves if row["epochs"]}) < 2
    rows = []
    for row in curves:
        timing, method = _timing(results, row), numbers.method_text(row["method"])
        rows.append([
            Cell(method, None, colours[method]), Cell(asked_text(row), row["speedup"] or row["keep_rate"]),
            Cell(recovery_text(row, short=short), row["epochs"]), cells.speed(timing),
            cells.number(timing["predicted_speedup"]), cells.percent(row["accuracy"]),
            cells.difference(difference_of(row["difference"])), cells.percent(row["agreement"], 1),
            cells.difference(difference_of(row["behind"])),
        ])  # fmt: skip
    heading = numbers.interval_heading("plain", [difference_of(row["difference"]) for row in curves])
    first = numbers.method_text(results["settings"]["methods"][0])
    columns = [
        "method", "asked\nfor", "recovery", "speed-up", "predicted\nby FLOPs", "accuracy,\n%", heading, "agreement,\n%",
        f"{first} − it,\npoints [95% interval]",
    ]  # fmt: skip
    return Table(f"All methods: {numbers.plain_text(results)}", columns, rows, cells.SPEED_NOTE, keys=3)


def _timing(results: Results, row: Results) -> Results:
    return numbers.timings_of(results["speed"])[row["timed_as"]]


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of accelerations."""
    section.title = section.attempt("title", lambda: numbers.models_text(results), "Accelerations")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.add(section.figures, "figures", lambda: _figures(results, best))
        section.add(section.remarks, "interval", lambda: numbers.over_text(difference_of(best["difference"])))
    section.add(section.charts, "accuracy against speed", lambda: _charts(results))
    section.add(section.tables, "table", lambda: table(results))


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
    return (
        f"Made faster by **{numbers.method_text(row['method'])}** and recovered ({recovery_text(row)}), the models are "
        f"{numbers.times_text(_timing(results, row))} and {numbers.change_text(difference_of(row['difference']))}: "
        f"{100 * row['accuracy']:.2f}% against {100 * numbers.plain_accuracy(results):.2f}%."
    )


def _figures(results: Results, row: Results) -> list[figures.Figure]:
    difference = difference_of(row["difference"]) or {}
    return [
        figures.speed(_timing(results, row)), figures.difference(difference), figures.agreement(row["agreement"])
    ]  # fmt: skip


def _charts(results: Results) -> list[charts.Chart]:
    """For each recovery one against FLOPs and one against measured speed."""
    found = dict.fromkeys(recovery_text(row) for row in results["curves"] if row["method"] != "plain")
    return [_chart(results, recovery, measured) for recovery in found for measured in (False, True)]


def _chart(results: Results, recovery: str, measured: bool) -> charts.Chart:
    plain = 100 * numbers.plain_accuracy(results)
    points = [charts.Point("plain", 1.0, plain)]
    for row in results["curves"]:
        if row["method"] != "plain" and recovery_text(row) == recovery:
            timing, name, sd = _timing(results, row), numbers.method_text(row["method"]), row["sd"]
            facts = [f"asked for {asked_text(row)}", f"agrees with plain on {100 * row['agreement']:.1f}%"]
            if measured:
                points.append(charts.measured_point(name, timing, row["accuracy"], sd, *facts))
            else:
                spread = None if sd is None else 100 * sd
                predicted = timing["predicted_speedup"]
                points.append(charts.Point(name, predicted, 100 * row["accuracy"], spread=spread, facts=facts))
    title = "Without recovery" if recovery == "none" else f"Recovered: {recovery}"
    models = numbers.counted(len(results["models"]), "model")
    spread_caption = f"Accuracy: mean ± standard deviation of {models}. {charts.AXES_CAPTION}"
    if measured:
        caption = f"{charts.SPEED_CAPTION} {spread_caption}"
        return charts.accuracy_against(points, plain, title=f"{title}, against measured speed", caption=caption)
    return charts.accuracy_against(
        points, plain, title=f"{title}, against FLOPs", caption=spread_caption, lines=True,
        axis="times fewer FLOPs than plain", across="{:.2f} times fewer FLOPs",
    )  # fmt: skip
