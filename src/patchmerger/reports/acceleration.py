"""What ``patchmerger accelerate`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from patchmerger.reducers.names import placement_in_words
from patchmerger.reports.numbers import (
    count_text,
    difference_text,
    interval_heading,
    left_out_text,
    speed_text,
    uncertain_text,
)
from patchmerger.reports.style import GREY, head, picture, speed_bars, variant_colours
from patchmerger.reports.tables import new_table, print_notes, print_table, report_console
from patchmerger.runs.statistics import TRAINING_NOISE

PICTURE_FILE = "acceleration.png"
_ROWS = {"plain": "plain", "initialised": "merged, not trained", "recovered": "recovered"}


def report_acceleration(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger accelerate`` into its folder, and print the table."""
    draw_acceleration(results, Path(results["folder"]) / PICTURE_FILE)
    show_acceleration(results)


def show_acceleration(results: dict[str, Any]) -> None:
    """Print the table, whether the target was met, and where the model is."""
    console = report_console()
    found, timings = results["evaluation"], {t["name"]: t for t in results["speed"]["timings"]}
    console.print(results["data"], soft_wrap=True)
    placement, differences = results["placement"], [found[key]["difference"] for key in _ROWS if key != "plain"]
    title = f"{results['settings']['model']}: {_placement(placement)}"
    columns = [f"{results['metric']}\n%", interval_heading("plain", differences), "agrees with\nplain, %", "ECE\n%"]
    columns += ["images/s", "speed-up\n(predicted)", "params", "peak memory\nMiB"]
    table = new_table([""], columns, title=title)
    for key, name in _ROWS.items():
        p, t = found[key], timings["plain" if key == "plain" else "accelerated"]
        value = p["agreement"] if p["accuracy"] is None else p["accuracy"]
        speed = f"{speed_text(t)} ({results['speedup']['predicted']:.2f})"
        memory = "–" if t["peak_memory"] is None else f"{t['peak_memory'] / 2**20:,.0f}"
        table.add_row(
            name,
            f"{100 * value:.2f}",
            "–" if key == "plain" else difference_text(p["difference"]),
            "–" if key == "plain" else f"{100 * p['agreement']:.1f}",
            "–" if p["ece"] is None else f"{100 * p['ece']:.1f}",
            *((f"{t['images_per_second']:,.0f}", "–" if key == "plain" else speed, count_text(t["params"]), memory)
              if key != "initialised" else ("", "", "", "")),
        )  # fmt: skip
    print_table(console, table)
    console.print(_verdict(results), soft_wrap=True)
    print_notes(console, uncertain_text([("accelerated", timings["accelerated"])]), left_out_text(differences))
    recovery = results["recovery"]
    if recovery["steps"]:
        console.print(
            f"Recovery: {recovery['steps']:,} steps, {recovery['epochs']:.2g} epochs, {recovery['seconds']:.0f} s "
            f"({recovery['precision']}); speed in {results['speed']['precision']}, batch of "
            f"{results['speed']['batch_size']}, on {results['environment']['device_name']}.",
            soft_wrap=True,
        )
    for name, phase in recovery["phases"].items():
        console.print(_phase(name, phase), soft_wrap=True)
    console.print(f"Model, results and picture: {results['folder']}", soft_wrap=True)


def _placement(found: dict[str, Any]) -> str:
    return placement_in_words(found["reducer"], found["num_tokens"], found["after"])


def _phase(name: str, phase: dict[str, Any]) -> str:
    """What one phase of the recovery did, in words."""
    watched, kept = phase["watched"], phase["kept"]
    on = "" if kept is None else f" on kept tokens of {kept['views']:,} views ({kept['bytes'] / 2**30:.2g} GiB)"
    change = f"{100 * watched['before']:.1f} → {100 * watched['after']:.1f}% of {watched['images']:,} watched images"
    ended = "" if phase["result"] == "recovered" else "; it ended below its beginning, which is what was kept"
    return f"  {name}: {phase['steps']:,} steps{on}, {change}{ended}."


def _verdict(results: dict[str, Any]) -> str:
    found = results["evaluation"]
    if results["met"] is None:
        return f"It agrees with the plain model on {100 * found['recovered']['agreement']:.1f}% of the images."
    lost = 100 * (found["plain"]["accuracy"] - found["recovered"]["accuracy"])
    change = f"{lost:.2f} points lost" if lost > 0 else f"{-lost:.2f} points won"
    if results["met"]:
        return f"[bold]{change}[/bold]: within the {results['max_drop']:g} that were accepted."
    return (
        f"[bold]{change}[/bold]: more than the {results['max_drop']:g} that were accepted; the model is kept all the "
        f"same. What would help: {', '.join(results['advice'])}."
    )


_NOT_TRAINED = "#e0945a"  # the colour of merged, lighter
STAGES = {"plain": "plain", "initialised": "merged,\nnot trained", "recovered": "recovered"}


def draw_acceleration(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate`` as a PNG.

    Left: accuracy (without labels: agreement with the plain model) of the plain model, with the queries initialised and
    after the recovery. Right: how many times as fast it is, measured and predicted.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    placement, settings = results["placement"], results["settings"]
    source = settings["data"]["source"] if isinstance(settings["data"], dict) else settings["data"]
    title = f"{settings['model']} on {source}: {_placement(placement)}"
    uncertain = next(t["uncertain"] for t in results["speed"]["timings"] if t["name"] == "accelerated")
    note = (
        f"Speed: median of the paired ratios of interleaved rounds, bar: their quartiles"
        f"{f', uncertain ({uncertain})' if uncertain else ''}; {results['environment']['device_name']}.\n"
        f"One recovery: {TRAINING_NOISE.split(' (')[0]} is left out."
    )
    with picture(path, columns=2, note=note, title=title) as (_, (left, right)):
        _accuracies(left, results)
        _speeds(right, results)


def _bars(axes: Axes, names: list[str], values: list[float], texts: list[str], colours: list[str]) -> None:
    """Bars from 0, each with its number in it."""
    axes.set_axisbelow(True)
    axes.bar(names, values, color=colours, width=0.6)
    for place, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(text, (place, 0.5 * value), ha="center", va="center", color="white", weight="bold")


def _limit(axes: Axes, height: float, label: str) -> None:
    """A dashed line, named at its right end."""
    axes.set_xlim(right=axes.get_xlim()[1] + 0.55)
    axes.axhline(height, color=GREY, lw=1, ls="--")
    axes.annotate(
        label, (1, height), xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points", ha="right",
        va="top", color=GREY, fontsize=8,
    )  # fmt: skip


def _accuracies(axes: Axes, results: dict[str, Any]) -> None:
    key = "agreement" if results["metric"] == "agreement" else "accuracy"
    values = [100 * results["evaluation"][stage][key] for stage in STAGES]
    plain, merged = variant_colours(["plain", "merged"]).values()
    _bars(axes, list(STAGES.values()), values, [f"{value:.2f}" for value in values], [plain, _NOT_TRAINED, merged])
    if results["max_drop"] is not None and values[0] > results["max_drop"]:
        _limit(axes, values[0] - results["max_drop"], f"−{results['max_drop']:g} points")
    axes.set_ylim(0, 1.05 * max(values))
    what = "agreement with plain" if key == "agreement" else results["metric"]
    axes.set_ylabel(f"{what}, {results['evaluation']['plain']['images']:,} held-out images, %", fontsize=9)
    head(axes, "Accuracy" if key == "accuracy" else "Agreement")


def _speeds(axes: Axes, results: dict[str, Any]) -> None:
    timing = next(t for t in results["speed"]["timings"] if t["name"] == "accelerated")
    speed, predicted, colours = timing["speedup"], results["speedup"]["predicted"], variant_colours(["plain", "merged"])
    _bars(axes, ["plain", "accelerated"], [1.0, speed], ["1", speed_text(timing)], list(colours.values()))
    axes.errorbar(1, speed, yerr=speed_bars(timing["ratio_quartiles"], speed), color="black", capsize=4, lw=1)
    _limit(axes, predicted, f"{predicted:.2f} by FLOPs")
    axes.set_ylim(0, 1.15 * max(speed, predicted))
    axes.set_ylabel("inference, times as fast as plain")
    head(axes, "Measured speed")
