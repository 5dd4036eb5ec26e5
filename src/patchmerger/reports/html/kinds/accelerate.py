"""``patchmerger accelerate``: a trained model made faster, evaluated beside the plain one."""

from __future__ import annotations

from patchmerger.reducers.names import placement_in_words
from patchmerger.reports.html.charts import Curve, Point, accuracy_against_speed, training_curves
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Diagram, Figure, Section, Table
from patchmerger.reports.numbers import count_text, interval_heading, model_name

_STAGES = {"plain": "plain", "initialised": "merged, not trained", "recovered": "accelerated"}


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of an acceleration."""
    section.title = section.attempt("title", lambda: _title(results), "An acceleration")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.remarks += section.attempt("advice", lambda: _remarks(results), [])
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results), [])
    section.charts += section.attempt("accuracy against speed", lambda: [_chart(results)], [])
    section.charts += section.attempt("training curves", lambda: [_curves(results)], [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])


def _title(results: Results) -> str:
    settings = results["settings"]
    return f"{model_name(settings['model'])} on {common.source_text(settings['data'])}"


def _verdict(results: Results) -> str:
    found, timing = results["evaluation"], common.timings_of(results["speed"])["accelerated"]
    place, epochs = results["placement"], results["recovery"]["epochs"]
    faster = (
        f"With {placement_in_words(place['reducer'], place['num_tokens'], place['after'])} and {epochs:.2g} "
        f"epoch{'' if epochs == 1 else 's'} of recovery, the "
        f"model is {common.times(timing)}"
    )
    recovered, plain = found["recovered"], found["plain"]
    if results["met"] is None:
        return f"{faster} and agrees with it on **{100 * recovered['agreement']:.1f}% of the images**."
    held = "within" if results["met"] else "more than"
    return (
        f"{faster} and {common.change(recovered['difference'], results['metric'])}: "
        f"{100 * recovered['accuracy']:.2f}% against {100 * plain['accuracy']:.2f}%, {held} the "
        f"{results['max_drop']:g} points that were accepted."
    )


def _remarks(results: Results) -> list[str]:
    remarks = [common.over(results["evaluation"]["recovered"]["difference"])]
    if results["advice"]:
        remarks.append(f"What would help: {'; '.join(results['advice'])}.")
    return [remark for remark in remarks if remark]


def _figures(results: Results) -> list[Figure]:
    found, timing = results["evaluation"]["recovered"], common.timings_of(results["speed"])["accelerated"]
    figures = [Figure(f"{timing['speedup']:.2f}×", "as fast as plain, inference")]
    if found["accuracy"] is not None:
        figures.append(Figure(*common.difference_figure(found["difference"], "plain")))
    figures.append(Figure(f"{100 * found['agreement']:.1f}%", "of images: the same class as plain"))
    return [*figures, Figure(f"{results['speedup']['predicted']:.2f}×", "predicted by FLOPs")]


def _diagrams(results: Results) -> list[Diagram]:
    if results.get("block_tokens"):
        found = common.diagram("Block by block", results, None)
        return [] if found is None else [found]
    raise KeyError("block_tokens")


def _chart(results: Results) -> Chart:
    timing = common.timings_of(results["speed"])["accelerated"]
    found, labels = results["evaluation"], results["metric"] != "agreement"
    key, metric = ("accuracy", "test accuracy") if labels else ("agreement", "agreement with plain")
    points = [
        Point(
            name, timing["speedup"], 100 * found[stage][key], common.speed_bar(timing), None,
            bool(timing["uncertain"]), [f"agrees with plain on {100 * found[stage]['agreement']:.1f}%"],
        )
        for stage, name in _STAGES.items() if stage != "plain"
    ]  # fmt: skip
    plain = Point("plain", 1.0, 100 * found["plain"][key])
    caption = f"{common.SPEED_CAPTION} The dotted line is plain; the vertical axis does not begin at 0."
    return accuracy_against_speed(points, plain, metric=metric, caption=caption)


def _curves(results: Results) -> Chart:
    curves, begun = [], 0.0
    for name, phase in results["recovery"]["phases"].items():
        rows = [row for row in phase.get("history") or () if row.get("val_metric") is not None]
        epochs = [0.0, *(row["epoch"] for row in rows)]
        values = [100 * phase["watched"]["before"], *(100 * row["val_metric"] for row in rows)]
        if rows:
            curves.append(
                Curve(
                    "recovery" if len(results["recovery"]["phases"]) == 1 else name,
                    [begun + epoch for epoch in epochs],
                    values,
                )
            )
            begun += epochs[-1]
    if not curves:
        raise ValueError("nothing was trained")
    return training_curves(
        "Recovery", curves, metric="watched images",
        caption="On images that are watched in training, from before the first step; of each phase. The vertical axis "
        "does not begin at 0.",
    )  # fmt: skip


def _table(results: Results) -> Table:
    found, timings = results["evaluation"], common.timings_of(results["speed"])
    rows = []
    for stage, name in _STAGES.items():
        one, timing = found[stage], timings["plain" if stage == "plain" else "accelerated"]
        memory = timing["peak_memory"]
        rows.append([
            Cell(name), _percent(one["accuracy"], 2), common.difference_cell(one["difference"]),
            _percent(one["agreement"], 1), _percent(one["ece"], 1),
            Cell(f"{timing['images_per_second']:,.1f}", timing["images_per_second"]), common.speed_cell(timing),
            Cell(count_text(timing["params"]), timing["params"]),
            Cell("–" if memory is None else f"{memory / 2**20:,.0f}", memory),
        ])  # fmt: skip
    heading = interval_heading("plain", [one["difference"] for one in found.values()]).replace("\n", " ")
    columns = [
        "model", "accuracy, %", heading, "agrees with plain, %", "ECE, %", "images/s", "speed-up", "parameters",
        "peak memory, MiB",
    ]  # fmt: skip
    images = found["plain"]["images"]
    note = f"On {images:,} held-out images. ECE: how far confidence is from accuracy. ? marks uncertain speed-ups."
    return Table("Before and after", columns, rows, note)


def _percent(value: float | None, places: int) -> Cell:
    return Cell("–" if value is None else f"{100 * value:.{places}f}", value)
