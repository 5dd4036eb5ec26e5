"""``patchmerger compare``: variants of one model, trained alike."""

from __future__ import annotations

from patchmerger.reports.html.charts import Curve, accuracy_against_speed, training_curves
from patchmerger.reports.html.colours import chart_colours
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Diagram, Figure, Section, Table
from patchmerger.reports.numbers import interval_heading, model_text


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a comparison."""
    section.title = section.attempt("title", lambda: _title(results["settings"]), "A comparison")
    chosen = section.attempt("verdict", lambda: _chosen(results), None)
    if chosen is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, chosen), "")
        section.figures += section.attempt("figures", lambda: _figures(results, chosen), [])
        section.remarks += section.attempt("interval", lambda: _remarks(results, chosen), [])
        section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results, chosen), [])
    section.charts += section.attempt("accuracy against speed", lambda: [_speed_chart(results)], [])
    section.charts += section.attempt("training curves", lambda: _curves(results), [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])


def _title(settings: Results) -> str:
    model = model_text(settings["model"])
    return f"{model} on {common.source_text(settings['data'])}: {common.seeds_text(settings)}"


def _chosen(results: Results) -> str | None:
    """The variant that the verdict is on: the merged one, or the first that is compared with the baseline."""
    others = [name for name in results["variants"] if name != results["baseline"]]
    merging = [name for name in others if results["variants"][name]["mergers"]]
    return "merged" if "merged" in others else next(iter([*merging, *others]), None)


def _verdict(results: Results, name: str) -> str:
    variants, baseline = results["variants"], results["baseline"]
    timing = common.timings_of(results["speed"]["inference"])[name]
    ours, theirs = variants[name], variants[baseline]
    places = " and ".join(f"{m['num_tokens']} tokens after block {m['after']}" for m in ours["mergers"])
    return (
        f"With {places or 'its change'}, the variant **{name}** is {common.times(timing, baseline)} and "
        f"{common.change(ours['difference'], results['metric'])}: {100 * ours['metric_mean']:.2f}% against "
        f"{100 * theirs['metric_mean']:.2f}%."
    )


def _remarks(results: Results, name: str) -> list[str]:
    difference = results["variants"][name]["difference"]
    return [] if difference is None else [common.over(difference)]


def _figures(results: Results, name: str) -> list[Figure]:
    variants, baseline = results["variants"], results["baseline"]
    speed, ours = results["speed"], variants[name]
    figures = [
        Figure(f"{common.timings_of(speed['inference'])[name]['speedup']:.2f}×", f"as fast as {baseline}, inference"),
        Figure(f"{common.timings_of(speed['training'])[name]['speedup']:.2f}×", f"as fast as {baseline}, training"),
    ]
    if ours["difference"] is not None:
        figures.append(Figure(*common.difference_figure(ours["difference"], baseline)))
    ratio = ours["flops"] / variants[baseline]["flops"]
    return [*figures, Figure(f"{100 * ratio:.0f}%", f"of the FLOPs of {baseline}")]


def _diagrams(results: Results, name: str) -> list[Diagram]:
    own = results["settings"]["variants"]
    model = (own[name] or {}).get("model") if isinstance(own, dict) and name in own else None
    depth = common.depth_of(model or results["settings"]["model"])
    found = common.diagram(f"Block by block: {name}", results["variants"][name], depth)
    return [] if found is None else [found]


def _speed_chart(results: Results) -> Chart:
    timings, variants = common.timings_of(results["speed"]["inference"]), results["variants"]
    points = {name: common.point(name, variants[name], timings[name]) for name in variants}
    plain = points.pop(results["baseline"])
    seeds = results["settings"]["seeds"]
    spread = f" Accuracy: mean ± standard deviation of {seeds} seeds." if seeds > 1 else " Accuracy: of one seed."
    return accuracy_against_speed(
        list(points.values()), plain, metric=f"test {results['metric']}",
        caption=f"{common.SPEED_CAPTION}{spread} The dotted line is {results['baseline']}; the vertical axis does not "
        "begin at 0.",
    )  # fmt: skip


def _curves(results: Results) -> list[Chart]:
    found = [common.curve(name, variant["history"]) for name, variant in results["variants"].items()]
    curves: list[Curve] = [curve for curve in found if curve is not None]
    if not curves:
        raise ValueError("there were no validation images")
    band = " Lines are means, bands go from the lowest to the highest seed." if results["settings"]["seeds"] > 1 else ""
    metric = f"validation {results['metric']}"
    caption = f"On validation images, after each epoch.{band} The vertical axis does not begin at 0."
    return [training_curves("Training curves", curves, metric=metric, caption=caption)]


def _table(results: Results) -> Table:
    variants, baseline = results["variants"], results["baseline"]
    colours = chart_colours(variants)
    inference, training = (common.timings_of(results["speed"][mode]) for mode in ("inference", "training"))
    heading = interval_heading(baseline, [variant["difference"] for variant in variants.values()]).replace("\n", " ")
    rows = [
        [
            Cell(name, None, colours[name]), *common.cost_cells(found), common.metric_cell(found),
            common.difference_cell(found["difference"]),
            Cell(f"{inference[name]['images_per_second']:,.0f}", inference[name]["images_per_second"]),
            common.speed_cell(inference[name]), Cell(f"{found['predicted_speedup']:.2f}", found["predicted_speedup"]),
            common.speed_cell(training[name]), Cell(f"{found['train_seconds']:,.0f}", found["train_seconds"]),
        ]
        for name, found in variants.items()
    ]  # fmt: skip
    columns = [
        "variant", "tokens", "GFLOPs", "parameters", f"{results['metric']}, %", heading, "images/s",
        "speed-up", "predicted", "speed-up in training", "trained, s",
    ]  # fmt: skip
    return Table("All variants", columns, rows, "Speed-ups are times as fast as the baseline; ? marks uncertain ones.")
