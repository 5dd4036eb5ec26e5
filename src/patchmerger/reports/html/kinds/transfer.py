"""``patchmerger transfer``: variants trained upstream, then few-shot and fine-tuned on other images."""

from __future__ import annotations

from functools import partial

from patchmerger.reports.html.charts import Curve, stages, training_curves
from patchmerger.reports.html.colours import chart_colours
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Diagram, Figure, Section, Table
from patchmerger.reports.numbers import difference_text, mean_text, model_text

_TUNED = "fine-tuned"


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of transfer."""
    section.title = section.attempt("title", lambda: _title(results), "Transfer")
    chosen = section.attempt("verdict", lambda: _chosen(results), None)
    if chosen is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, chosen), "")
        section.figures += section.attempt("figures", lambda: _figures(results, chosen), [])
        section.remarks += section.attempt("interval", lambda: _remarks(results, chosen), [])
        section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results, chosen), [])
    section.charts += section.attempt("accuracy by stage", lambda: [_stages(results)], [])
    for stage in ("upstream", _TUNED):
        section.charts += section.attempt(f"training curves, {stage}", partial(_all_curves, results, stage), [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])


def _title(results: Results) -> str:
    settings, data = results["settings"], results["data"]
    upstream, downstream = (common.source_text(data[which]) for which in ("upstream", "downstream"))
    return f"{model_text(settings['model'])}, from {upstream} to {downstream}: {common.seeds_text(settings)}"


def _chosen(results: Results) -> str | None:
    """The variant that the verdict is on: the first that is not the baseline."""
    return next((name for name in results["variants"] if name != results["baseline"]), None)


def _verdict(results: Results, name: str) -> str:
    tuned = {each: results["variants"][each]["stages"][_TUNED] for each in (name, results["baseline"])}
    timing = common.timings_of(results["speed"]["inference"])[name]
    return (
        f"Fine-tuned on other images, **{name}** is {common.times(timing, results['baseline'])} and "
        f"{common.change(tuned[name]['difference'], tuned[name]['metric'])}: {100 * tuned[name]['metric_mean']:.2f}% "
        f"against {100 * tuned[results['baseline']]['metric_mean']:.2f}%."
    )


def _remarks(results: Results, name: str) -> list[str]:
    return [common.over(results["variants"][name]["stages"][_TUNED]["difference"])]


def _figures(results: Results, name: str) -> list[Figure]:
    timing = common.timings_of(results["speed"]["inference"])[name]
    figures = [Figure(f"{timing['speedup']:.2f}×", f"as fast as {results['baseline']}, inference")]
    for stage, found in results["variants"][name]["stages"].items():
        if found["difference"] is not None and stage in ("upstream", _TUNED):
            figures.append(Figure(common.signed(100 * found["difference"]["mean"]), f"points, {stage}"))
    return figures


def _diagrams(results: Results, name: str) -> list[Diagram]:
    depth = common.depth_of(results["settings"]["model"])
    found = common.diagram(f"Block by block: {name}", results["variants"][name], depth)
    return [] if found is None else [found]


def _stages(results: Results) -> Chart:
    bars = {
        name: [
            (stage, 100 * found["metric_mean"], f"{mean_text(found)}%; − {results['baseline']}: "
             f"{difference_text(found['difference'])} points")
            for stage, found in variant["stages"].items()
        ]
        for name, variant in results["variants"].items()
    }  # fmt: skip
    return stages(
        "Accuracy by stage", bars, metric="test accuracy",
        caption="Upstream on the images that it was trained on; k-shot: a linear classifier on frozen features of k "
        "images a class; fine-tuned on the other images.",
    )  # fmt: skip


def _all_curves(results: Results, stage: str) -> list[Chart]:
    return [_curves(results, stage)]


def _curves(results: Results, stage: str) -> Chart:
    found = [
        common.curve(name, variant["stages"][stage]["history"]) for name, variant in results["variants"].items()
    ]  # fmt: skip
    curves: list[Curve] = [curve for curve in found if curve is not None]
    if not curves:
        raise ValueError("there were no validation images")
    caption = "On validation images, after each epoch. The vertical axis does not begin at 0."
    return training_curves(f"Training curves, {stage}", curves, metric="validation accuracy", caption=caption)


def _table(results: Results) -> Table:
    colours = chart_colours(results["variants"])
    rows = []
    for name, variant in results["variants"].items():
        for stage, found in variant["stages"].items():
            rate = found.get("images_per_second")
            rows.append([
                Cell(name, None, colours[name]), Cell(stage), common.metric_cell(found),
                common.difference_cell(found["difference"]), Cell("–" if rate is None else f"{rate:,.0f}", rate),
            ])  # fmt: skip
    columns = ["variant", "stage", "accuracy, %", f"− {results['baseline']}, points [95% interval]", "images/s"]
    return Table("All stages", columns, rows, "Images a second: in training, or in the one pass that gives features.")
