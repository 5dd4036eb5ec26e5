"""What ``patchmerger transfer`` shows: variants trained upstream, then few-shot and fine-tuned on other images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.colours import chart_colours
from patchmerger.reports.parts.diagrams import diagram
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import transfer as picture

_TUNED = "fine-tuned"


def report(results: Results) -> None:
    """Draw the picture of ``patchmerger transfer`` into its folder, and print the table and what it means."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console, baseline, variants = report_console(), results["baseline"], results["variants"]
    print_table(console, table(results))
    print_notes(
        console, *(_outcome(results, name) for name in variants if name != baseline), numbers.uncertain_modes(results),
        numbers.left_out_text(_differences(results)),
        "Seconds and images/s: of training, and of making the features that all k share, one after another; the "
        "speed-ups above are of interleaved rounds.",
        numbers.taken_over_text(results), f"Results, picture and models: {results['folder']}",
    )  # fmt: skip


def table(results: Results) -> Table:
    """A row for each stage and variant."""
    settings, variants, baseline = results["settings"], results["variants"], results["baseline"]
    colours, stages = chart_colours(variants), list(variants[baseline]["stages"])
    rows = []
    for stage in stages:
        base = variants[baseline]["stages"][stage]
        for name, variant in variants.items():
            found = variant["stages"][stage]
            # All k share one pass for the features.
            timed = "train_seconds" in found or stage == stages[1]
            seconds = found.get("train_seconds", found.get("feature_seconds"))
            times = found["images_per_second"] / base["images_per_second"] if timed else None
            rows.append([
                Cell(name, None, colours[name]), Cell(stage),
                cells.gflops(found.get("flops", variant["flops"])), cells.metric(found),
                cells.difference(found["difference"]), cells.number(seconds if timed else None, ",.0f"),
                cells.rate(found) if timed else Cell("–"), cells.number(times),
            ])  # fmt: skip
    heading = numbers.interval_heading(baseline, _differences(results))
    columns = ["variant", "stage", "GFLOPs", "accuracy,\n%", heading, "seconds", "images/s", "times\nas fast"]
    caption = f"All stages: {numbers.sources_text(settings)}, {numbers.counted(settings['seeds'], 'seed')}"
    note = "Seconds and images a second: in training, or in the one pass that gives features."
    return Table(caption, columns, rows, note, keys=2)


def _differences(results: Results) -> list[Results | None]:
    return [found["difference"] for variant in results["variants"].values() for found in variant["stages"].values()]


def _outcome(results: Results, name: str) -> str:
    """One line on a variant: where it is better or worse, and how much faster."""
    found, speed = results["variants"][name]["stages"], results["speed"]
    known = {stage: numbers.shown_text(s["difference"]) for stage, s in found.items() if s["difference"] is not None}
    parts = [f"{text}: {', '.join(s for s in known if known[s] == text)}" for text in dict.fromkeys(known.values())]
    faster = [
        f"{numbers.speed_text(numbers.timings_of(speed[mode])[name])} in {mode}" for mode in ("training", "inference")
    ]
    predicted = 1 / results["variants"][name]["flops_ratio"]
    return f"{name}: {'; '.join(parts)}. Speed-up {', '.join(faster)} ({predicted:.2f} predicted)."


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of transfer."""
    section.title = section.attempt("title", lambda: numbers.run_text(results), "Transfer")
    chosen = section.attempt("verdict", lambda: _chosen(results), None)
    if chosen is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, chosen), "")
        section.add(section.figures, "figures", lambda: _figures(results, chosen))
        found = results["variants"][chosen]
        section.add(section.remarks, "interval", lambda: numbers.over_text(found["stages"][_TUNED]["difference"]))
        model = (results.get("settings") or {}).get("model")
        section.add(section.diagrams, "diagram", lambda: diagram(f"Block by block: {chosen}", found, model))
    section.add(section.charts, "accuracy by stage", lambda: _stages(results))
    for stage in ("upstream", _TUNED):
        section.add(section.charts, f"training curves, {stage}", partial(_curves, results, stage))
    section.add(section.tables, "table", lambda: table(results))


def _chosen(results: Results) -> str | None:
    """The variant that the verdict is on: the first that is not the baseline."""
    return next((name for name in results["variants"] if name != results["baseline"]), None)


def _verdict(results: Results, name: str) -> str:
    ours, theirs = (results["variants"][each]["stages"][_TUNED] for each in (name, results["baseline"]))
    timing = numbers.timings_of(results["speed"]["inference"])[name]
    return (
        f"Fine-tuned on other images, **{name}** is {numbers.times_text(timing, results['baseline'])} and "
        f"{numbers.change_text(ours['difference'], ours['metric'])}: {100 * ours['metric_mean']:.2f}% against "
        f"{100 * theirs['metric_mean']:.2f}%."
    )


def _figures(results: Results, name: str) -> list[figures.Figure]:
    timing, stages = numbers.timings_of(results["speed"]["inference"])[name], results["variants"][name]["stages"]
    known = {stage: stages[stage]["difference"] for stage in ("upstream", _TUNED) if stage in stages}
    return [
        figures.speed(timing, f"{results['baseline']}, inference"),
        *(
            figures.Figure(numbers.signed(100 * d["mean"]), f"points, {stage}")
            for stage, d in known.items()
            if d is not None
        ),
    ]


def _stages(results: Results) -> charts.Chart:
    bars = {
        name: [
            (stage, 100 * found["metric_mean"], f"{numbers.mean_text(found)}%; − {results['baseline']}: "
             f"{numbers.difference_text(found['difference'])} points")
            for stage, found in variant["stages"].items()
        ]
        for name, variant in results["variants"].items()
    }  # fmt: skip
    return charts.stages(
        "Accuracy by stage", bars, metric="test accuracy",
        caption="Upstream on the images that it was trained on; k-shot: a linear classifier on frozen features of k "
        "images a class; fine-tuned on the other images.",
    )  # fmt: skip


def _curves(results: Results, stage: str) -> charts.Chart:
    variants = results["variants"].items()
    curves = [charts.curve(name, variant["stages"][stage]["history"]) for name, variant in variants]
    return charts.training_curves(curves, title=f"Training curves, {stage}")
