"""What ``patchmerger accelerate`` shows: a trained model made faster, evaluated beside the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchmerger.reducers.names import placement_in_words
from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.diagrams import diagram, tokens_of
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, emphasised, print_notes, print_table, report_console
from patchmerger.reports.pictures import accelerate as picture
from patchmerger.runs.text import significant


def report(results: Results) -> None:
    """Draw the picture of ``patchmerger accelerate`` into its folder, and print the table."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console, recovery = report_console(), results["recovery"]
    console.print(results["data"], soft_wrap=True)
    print_table(console, table(results))
    for line in (_verdict(results), *_remarks(results)):
        console.print(emphasised(line), soft_wrap=True)
    timing = numbers.timings_of(results["speed"])["accelerated"]
    print_notes(console, numbers.uncertain_text([("accelerated", timing)]))
    if recovery["steps"]:
        console.print(
            f"Recovery: {recovery['steps']:,} steps, {numbers.epochs_text(recovery['epochs'])}, "
            f"{recovery['seconds']:.0f} s ({recovery['precision']}); speed in {results['speed']['precision']}, batch "
            f"of {results['speed']['batch_size']}, on {results['environment']['device_name']}.",
            soft_wrap=True,
        )
    for name, phase in recovery["phases"].items():
        console.print(_phase(name, phase), soft_wrap=True)
    console.print(f"Model, results and picture: {results['folder']}", soft_wrap=True)


def table(results: Results) -> Table:
    """The plain model, the merged one before any training, and the accelerated one."""
    found, timings = results["evaluation"], numbers.timings_of(results["speed"])
    rows = []
    for stage, name in picture.STAGES.items():
        one, plain = found[stage], stage == "plain"
        timing = timings["plain" if plain else "accelerated"]
        rows.append([
            Cell(name), cells.percent(one["accuracy"]), cells.difference(None if plain else one["difference"]),
            cells.percent(None if plain else one["agreement"], 1), cells.percent(one["ece"], 1),
            cells.rate(timing), cells.speed(timing), cells.number(1.0 if plain else results["speedup"]["predicted"]),
            Cell(numbers.count_text(timing["params"]), timing["params"]), cells.memory(timing["peak_memory"]),
        ])  # fmt: skip
    metric = "accuracy" if results["metric"] == "agreement" else results["metric"]
    heading = numbers.interval_heading("plain", [found[stage]["difference"] for stage in picture.STAGES])
    columns = [
        "model", f"{metric},\n%", heading, "agrees with\nplain, %", "ECE,\n%", "images/s", "speed-up",
        "predicted\nby FLOPs", "params", "peak memory,\nMiB",
    ]  # fmt: skip
    images = found["plain"]["images"]
    note = f"On {images:,} held-out images. ECE: how far confidence is from accuracy. ? marks uncertain speed-ups."
    return Table(picture.title_text(results), columns, rows, note)


def _phase(name: str, phase: dict[str, Any]) -> str:
    """What one phase of the recovery did, in words."""
    watched, kept = phase["watched"], phase["kept"]
    on = (
        ""
        if kept is None
        else f" on kept tokens of {kept['views']:,} views ({significant(kept['bytes'] / 2**30, 2)} GiB)"
    )
    change = f"{100 * watched['before']:.1f} → {100 * watched['after']:.1f}% of {watched['images']:,} watched images"
    ended = "" if phase["result"] == "recovered" else "; it ended below its beginning, which is what was kept"
    return f"  {name}: {phase['steps']:,} steps{on}, {change}{ended}."


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of an acceleration."""
    section.title = section.attempt("title", lambda: _title(results), "An acceleration")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.remarks, "advice", lambda: _remarks(results))
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.diagrams, "diagram", lambda: diagram("Block by block", tokens_of(results)))
    section.add(section.charts, "accuracy against speed", lambda: _chart(results))
    section.add(section.charts, "training curves", lambda: _curves(results))
    section.add(section.tables, "table", lambda: table(results))


def _title(results: Results) -> str:
    settings = results["settings"]
    return f"{numbers.model_name(settings['model'])} on {numbers.source_text(settings['data'])}"


def _verdict(results: Results) -> str:
    found, timing = results["evaluation"], numbers.timings_of(results["speed"])["accelerated"]
    place, length = results["placement"], numbers.epochs_text(results["recovery"]["epochs"])
    faster = (
        f"With {placement_in_words(place['reducer'], place['num_tokens'], place['after'])} and {length} of recovery, "
        f"the model is {numbers.times_text(timing)}"
    )
    recovered, plain = found["recovered"], found["plain"]
    if results["met"] is None:
        return f"{faster} and agrees with it on **{100 * recovered['agreement']:.1f}% of the images**."
    held = "within" if results["met"] else "more than"
    return (
        f"{faster} and {numbers.change_text(recovered['difference'], results['metric'])}: "
        f"{100 * recovered['accuracy']:.2f}% against {100 * plain['accuracy']:.2f}%, {held} the "
        f"{results['max_drop']:g} points that were accepted."
    )


def _remarks(results: Results) -> list[str]:
    kept = "The model is kept all the same. " if results["met"] is False else ""
    advice = [f"{kept}What would help: {'; '.join(results['advice'])}."] if results["advice"] else []
    over = numbers.over_text(results["evaluation"]["recovered"]["difference"])
    return [over, *advice] if over else advice


def _figures(results: Results) -> list[figures.Figure]:
    found, timing = results["evaluation"]["recovered"], numbers.timings_of(results["speed"])["accelerated"]
    return [
        figures.speed(timing),
        *([] if found["accuracy"] is None else [figures.difference(found["difference"])]),
        figures.agreement(found["agreement"]),
        figures.Figure(f"{results['speedup']['predicted']:.2f}×", "predicted by FLOPs"),
    ]


def _chart(results: Results) -> charts.Chart:
    timing, found = numbers.timings_of(results["speed"])["accelerated"], results["evaluation"]
    labels = results["metric"] != "agreement"
    key, metric = ("accuracy", "test accuracy") if labels else ("agreement", "agreement with plain")
    plain = charts.Point("plain", 1.0, 100 * found["plain"][key])
    others = [
        charts.measured_point(
            name, timing, found[stage][key], None, f"agrees with plain on {100 * found[stage]['agreement']:.1f}%"
        )
        for stage, name in picture.STAGES.items()
        if stage != "plain"
    ]
    return charts.accuracy_against([plain, *others], plain.accuracy, metric=metric)


def _curves(results: Results) -> charts.Chart:
    phases, curves, begun = results["recovery"]["phases"], [], 0.0
    for name, phase in phases.items():
        rows = [row for row in phase.get("history") or () if row.get("val_metric") is not None]
        if rows:
            epochs = [begun + epoch for epoch in (0.0, *(row["epoch"] for row in rows))]
            values = [100 * value for value in (phase["watched"]["before"], *(row["val_metric"] for row in rows))]
            curves.append(charts.Curve("recovery" if len(phases) == 1 else name, epochs, values))
            begun = epochs[-1]
    images = "On images that are watched in training, from before the first step; of each phase."
    return charts.training_curves(curves, title="Recovery", metric="watched images", images=images)
