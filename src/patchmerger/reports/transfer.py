"""The table and the picture of ``patchmerger transfer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.markup import escape

from patchmerger.reports.numbers import (
    counted,
    difference_text,
    interval_heading,
    left_out_text,
    mean_text,
    settings_text,
    shown_text,
    speed_text,
    uncertain_text,
)
from patchmerger.reports.style import GREY, head, picture, shared_legend, variant_colours, variant_markers
from patchmerger.reports.tables import new_table, print_notes, print_table, report_console

PICTURE_FILE = "transfer.png"


def report_transfer(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger transfer`` into its folder, and print the table."""
    draw_transfer(results, Path(results["folder"]) / PICTURE_FILE)
    show_transfer(results)


def show_transfer(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger transfer`` and what it means."""
    console = report_console()
    settings, baseline = results["settings"], results["baseline"]
    differences = [
        stage["difference"] for variant in results["variants"].values() for stage in variant["stages"].values()
    ]
    sources = f"{settings['data']['source']} → {settings['downstream']['source']}"
    title = f"{sources}, {counted(settings['seeds'], 'seed')}"
    columns = (
        "GFLOPs",
        "accuracy\n%",
        interval_heading(baseline, differences),
        "seconds",
        "images/s",
        "times\nas fast",
    )
    table = new_table(["stage", "variant"], columns, title=title)
    stages = list(results["variants"][baseline]["stages"])
    for stage in stages:
        for name, variant in results["variants"].items():
            found = variant["stages"][stage]
            base = results["variants"][baseline]["stages"][stage]
            # All k share one pass for the features.
            timed = "train_seconds" in found or stage == stages[1]
            seconds = found.get("train_seconds", found.get("feature_seconds"))
            table.add_row(
                stage if name == next(iter(results["variants"])) else "",
                escape(name),
                f"{found.get('flops', variant['flops']) / 1e9:.3g}",
                mean_text(found),
                difference_text(found["difference"]),
                f"{seconds:.0f}" if timed else "",
                f"{found['images_per_second']:,.0f}" if timed else "",
                f"{found['images_per_second'] / base['images_per_second']:.2f}" if timed else "",
                end_section=name == list(results["variants"])[-1],
            )
    print_table(console, table, keys=2)
    for name in results["variants"]:
        if name != baseline:
            console.print(escape(_transfer_verdict(name, results)), soft_wrap=True)
    uncertain = uncertain_text(
        (f"{t['name']} in {mode}", t)
        for mode, measured in results["speed"].items()
        for t in measured["timings"]
        if t["name"] != baseline
    )
    print_notes(
        console, uncertain, left_out_text(differences),
        "Seconds and images/s: of training, and of making the features that all k share, one after another; the "
        "speed-ups above are of interleaved rounds.",
        f"Results, picture and models: {results['folder']}",
    )  # fmt: skip


def _transfer_verdict(name: str, results: dict[str, Any]) -> str:
    """One line on a variant: where it is better or worse, and how much faster."""
    found = results["variants"][name]["stages"]
    known = {stage: shown_text(s["difference"]) for stage, s in found.items() if s["difference"] is not None}
    parts = [f"{text}: {', '.join(s for s in known if known[s] == text)}" for text in dict.fromkeys(known.values())]
    speed = {mode: {t["name"]: speed_text(t) for t in results["speed"][mode]["timings"]} for mode in results["speed"]}
    faster = f"{speed['training'][name]} in training, {speed['inference'][name]} in inference"
    predicted = 1 / results["variants"][name]["flops_ratio"]
    return f"{name}: {'; '.join(parts)}. Speed-up {faster} ({predicted:.2f} predicted)."


def draw_transfer(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger transfer`` as a PNG.

    Left: the metric of each stage. Right: the paired difference to the baseline in points, with its 95% interval.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    variants, baseline, seeds = results["variants"], results["baseline"], results["settings"]["seeds"]
    stages = list(variants[baseline]["stages"])
    with picture(path, columns=2, note=_note(results)) as (figure, (left, right)):
        colours, markers = variant_colours(variants), variant_markers(variants)
        for number, (name, variant) in enumerate(variants.items()):
            looks: dict[str, Any] = {"fmt": markers[name], "ms": 7, "capsize": 3, "lw": 1.2, "color": colours[name]}
            _stages(left, variant["stages"], stages, _shift(number, len(variants)), looks)
            if name != baseline:
                _differences(right, variant["stages"], stages, _shift(number - 1, len(variants) - 1), looks)
        left.set_ylim(bottom=0)
        left.set_ylabel("test accuracy, %")
        head(left, "Each stage")
        right.axhline(0, color=GREY, lw=1, ls="--")
        right.set_ylabel("points")
        head(right, f"Minus {baseline}, paired, 95% interval{', one seed' if seeds == 1 else ''}")
        for axes in (left, right):
            axes.set_xticks(range(len(stages)), stages, fontsize=9)
            axes.set_xlim(-0.6, len(stages) - 0.4)
        handles = [Line2D([], [], color=colours[name], marker=markers[name], ms=8, lw=0) for name in variants]
        labels = [f"{name}, {variant['flops'] / 1e9:.3g} GFLOPs" for name, variant in variants.items()]
        shared_legend(figure, handles, labels, title=settings_text(results["settings"]))


def _note(results: dict[str, Any]) -> str:
    seeds = results["settings"]["seeds"]
    tuned = counted(results["settings"]["finetuning"]["training"]["epochs"], "epoch")
    if seeds > 1:
        return f"Fine-tuned for {tuned}. Left: mean ± standard deviation of {seeds} seeds. Right: over the seeds."
    return (
        f"Fine-tuned for {tuned}. Intervals are over the test images (few-shot: over the draws) of one training each, "
        "and leave out training noise."
    )


def _stages(axes: Axes, found: dict[str, Any], stages: list[str], shift: float, looks: dict[str, Any]) -> None:
    sds = [100 * (found[stage]["metric_sd"] or 0) for stage in stages]
    places = [place + shift for place in range(len(stages))]
    means = [100 * found[stage]["metric_mean"] for stage in stages]
    axes.errorbar(places, means, yerr=sds if any(sds) else None, **looks)


def _differences(axes: Axes, found: dict[str, Any], stages: list[str], shift: float, looks: dict[str, Any]) -> None:
    for place, stage in enumerate(stages):
        difference = found[stage]["difference"]
        if difference is not None:
            mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
            axes.errorbar(place + shift, mean, yerr=[[mean - low], [high - mean]], **looks)


def _shift(number: int, count: int) -> float:
    return 0.16 * (number - (count - 1) / 2)
