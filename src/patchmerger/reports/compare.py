"""What ``patchmerger compare`` shows: variants of one model, trained alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.colours import chart_colours
from patchmerger.reports.parts.diagrams import Diagram, diagram
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import compare as picture


def report(results: Results) -> None:
    """Draw the picture of ``patchmerger compare`` into its folder, and print the table and what it means."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console, baseline, variants = report_console(), results["baseline"], results["variants"]
    print_table(console, table(results))
    for name, variant in variants.items():
        if (difference := variant["difference"]) is not None:
            paired = f"paired over {difference['n']:,} {difference['over']}"
            console.print(f"{escape(name)} against {escape(baseline)}: {numbers.shown_text(difference)} ({paired}).")
    left_out = numbers.left_out_text(variant["difference"] for variant in variants.values())
    print_notes(
        console, numbers.uncertain_modes(results), left_out, numbers.taken_over_text(results),
        f"Results, picture and models: {results['folder']}",
    )  # fmt: skip


def table(results: Results) -> Table:
    """A row for each variant: its cost, accuracy and speed."""
    settings, variants, baseline = results["settings"], results["variants"], results["baseline"]
    colours = chart_colours(variants)
    inference, training = (numbers.timings_of(results["speed"][mode]) for mode in ("inference", "training"))
    ranks = {name: _ranks(found.get("merger") or ()) for name, found in variants.items()}
    any_rank = any(ranks.values())  # older results have none
    heading = numbers.interval_heading(baseline, [variant["difference"] for variant in variants.values()])
    rows = [
        [
            Cell(name, None, colours[name]), *cells.costs(found), cells.metric(found),
            cells.difference(found["difference"]), cells.rate(inference[name]), cells.speed(inference[name]),
            cells.number(1 / found["flops_ratio"]), cells.speed(training[name]),
            cells.number(found["train_seconds"], ",.0f"), *([cells.listed(ranks[name], ".1f")] if any_rank else []),
        ]
        for name, found in variants.items()
    ]  # fmt: skip
    columns = [
        "variant", "tokens", "GFLOPs", "params", f"{results['metric']},\n%", heading, "images/s", "speed-up",
        "predicted\nby FLOPs", "speed-up\nin training", "trained,\ns", *(["rank\nof A"] if any_rank else []),
    ]  # fmt: skip
    caption = f"All variants: {numbers.source_text(settings['data'])}, {numbers.counted(settings['seeds'], 'seed')}"
    return Table(caption, columns, rows, "Speed-ups are times as fast as the baseline; ? marks uncertain ones.")


def _ranks(diagnoses: Sequence[Results | None]) -> list[float]:
    """The effective rank of each merger's A, the mean over the seeds; none where some were not diagnosed."""
    ranks = [[merger["effective_rank"] for merger in (diagnosis or {}).values()] for diagnosis in diagnoses]
    return [sum(of_one) / len(of_one) for of_one in zip(*ranks, strict=False)]


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a comparison."""
    section.title = section.attempt("title", lambda: numbers.run_text(results), "A comparison")
    chosen = section.attempt("verdict", lambda: _chosen(results), None)
    if chosen is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, chosen), "")
        section.add(section.figures, "figures", lambda: _figures(results, chosen))
        section.add(section.remarks, "interval", lambda: numbers.over_text(results["variants"][chosen]["difference"]))
        section.add(section.diagrams, "diagram", lambda: _diagram(results, chosen))
    section.add(section.charts, "accuracy against speed", lambda: _speed_chart(results))
    section.add(section.charts, "training curves", lambda: _curves(results))
    section.add(section.tables, "table", lambda: table(results))


def _chosen(results: Results) -> str | None:
    """The variant that the verdict is on: the merged one, or the first that is compared with the baseline."""
    others = [name for name in results["variants"] if name != results["baseline"]]
    merging = [name for name in others if results["variants"][name]["mergers"]]
    return "merged" if "merged" in others else next(iter([*merging, *others]), None)


def _verdict(results: Results, name: str) -> str:
    baseline = results["baseline"]
    ours, theirs = results["variants"][name], results["variants"][baseline]
    timing = numbers.timings_of(results["speed"]["inference"])[name]
    return (
        f"With {numbers.merges_text(ours['mergers']) or 'its change'}, the variant **{name}** is "
        f"{numbers.times_text(timing, baseline)} and {numbers.change_text(ours['difference'], results['metric'])}: "
        f"{100 * ours['metric_mean']:.2f}% against {100 * theirs['metric_mean']:.2f}%."
    )


def _figures(results: Results, name: str) -> list[figures.Figure]:
    variants, baseline = results["variants"], results["baseline"]
    found = [
        figures.speed(numbers.timings_of(results["speed"][mode])[name], f"{baseline}, {mode}")
        for mode in ("inference", "training")
    ]
    if variants[name]["difference"] is not None:
        found.append(figures.difference(variants[name]["difference"], baseline))
    ratio = variants[name]["flops"] / variants[baseline]["flops"]
    return [*found, figures.Figure(f"{100 * ratio:.0f}%", f"of the FLOPs of {baseline}")]


def _diagram(results: Results, name: str) -> Diagram | None:
    own = results["settings"]["variants"]
    model = (own[name] or {}).get("model") if isinstance(own, dict) and name in own else None
    return diagram(f"Block by block: {name}", results["variants"][name], model or results["settings"]["model"])


def _speed_chart(results: Results) -> charts.Chart:
    timings, variants = numbers.timings_of(results["speed"]["inference"]), results["variants"]
    seeds, baseline = results["settings"]["seeds"], results["baseline"]
    spread = f"Accuracy: {f'mean ± standard deviation of {seeds} seeds' if seeds > 1 else 'of one seed'}."
    return charts.accuracy_against(
        [charts.variant_point(name, variants[name], timings[name]) for name in variants],
        100 * variants[baseline]["metric_mean"], metric=f"test {results['metric']}",
        axis=f"times as fast as {baseline}",
        caption=f"{charts.SPEED_CAPTION} {spread} {charts.AXES_CAPTION.replace('plain', baseline)}",
    )  # fmt: skip


def _curves(results: Results) -> charts.Chart:
    curves = [charts.curve(name, variant["history"]) for name, variant in results["variants"].items()]
    return charts.training_curves(curves, metric=f"validation {results['metric']}")
