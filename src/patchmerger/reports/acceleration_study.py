"""The table and the picture of ``patchmerger accelerate-study``: accuracy kept against FLOPs and measured speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from patchmerger.reducers.names import METHODS
from patchmerger.reports.numbers import (
    counted,
    difference_text,
    interval_heading,
    left_out_text,
    model_text,
    speed_text,
    uncertain_text,
)
from patchmerger.reports.style import (
    GREY,
    head,
    picture,
    shared_legend,
    speed_bars,
    variant_colours,
    variant_markers,
)
from patchmerger.reports.tables import new_table, print_notes, print_table, report_console

PICTURE_FILE = "accelerations.png"
WORDS = {
    "plain": "plain, trained on", "cut": "fewer blocks", "regions": "fixed regions", "located": "located queries",
    "soft": "queries from clusters", "random": "random queries", "average": "average pooling",
    "random-drop": "dropped at random",
}  # fmt: skip
"""What tables and pictures call the methods that have more of a name than their own."""


def report_accelerations(results: dict[str, Any]) -> None:
    """Draw the picture of ``patchmerger accelerate-study`` into its folder, and print the table."""
    draw_accelerations(results, Path(results["folder"]) / PICTURE_FILE)
    show_accelerations(results)


def method_text(method: str) -> str:
    """A method's name in words."""
    if method in WORDS:
        return WORDS[method]
    known = METHODS.get(method)
    return method if known is None else known.title


def recovery_text(row: Mapping[str, Any], *, short: bool = False) -> str:
    """For how long was trained, and what."""
    length = f"{row['epochs']:g} epoch{'' if row['epochs'] == 1 else 's'}"
    return "none" if not row["epochs"] else length if short else f"{row['scope']}, {length}"


def asked_order(row: Mapping[str, Any]) -> tuple[float, float]:
    """Sorts rows by wanted speed-up, then those of keep rates from the largest rate to the smallest."""
    return (float("inf"), -row["keep_rate"]) if row.get("keep_rate") else (row["speedup"], 0.0)


def asked_text(row: Mapping[str, Any]) -> str:
    """The wanted speed-up, or the keep rate."""
    return f"keep {row['keep_rate']:g}" if row.get("keep_rate") else f"{row['speedup']:g}"


def difference_of(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A difference with its interval over the models, where there are several, or else over the images."""
    return None if found is None else found.get("models") or found["images"]


def show_accelerations(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger accelerate-study``: a row for each speed-up, method and recovery."""
    console, curves, first = report_console(), results["curves"], results["settings"]["methods"][0]
    timings = {t["name"]: t for t in results["speed"]["timings"]}
    plain = 100 * sum(p["accuracy"] for p in results["plain"]) / len(results["plain"])
    differences = [difference_of(row["difference"]) for row in curves]
    title = f"test accuracy, %; plain: {plain:.2f} ({counted(len(results['models']), 'model')})"
    columns = ("accuracy", interval_heading("plain", differences), "agreement", f"{method_text(first)} − it")
    table = new_table(["speed-up\n(by FLOPs)", "method", "recovery"], columns, title=title)
    scopes, last = {row["scope"] for row in curves if row["epochs"]}, None
    for row in sorted(curves, key=asked_order):
        timing = timings[row["timed_as"]]
        speed = f"{speed_text(timing)} ({timing['predicted_speedup']:.2f})"
        speed += f", {asked_text(row)}" if row.get("keep_rate") else ""
        table.add_row(
            speed, method_text(row["method"]), recovery_text(row, short=len(scopes) < 2),
            f"{100 * row['accuracy']:.2f}",
            difference_text(difference_of(row["difference"])), f"{100 * row['agreement']:.1f}",
            difference_text(difference_of(row["behind"])), end_section=False,
        )  # fmt: skip
        last = row
    if last is None:
        return
    print_table(console, table, keys=3)
    console.print(results["data"], soft_wrap=True)
    uncertain = uncertain_text((t["name"], t) for t in results["speed"]["timings"] if t["name"] != "plain")
    print_notes(console, uncertain, left_out_text(curves), f"Results and picture: {results['folder']}")


def draw_accelerations(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate-study`` as a PNG.

    For each recovery a row of two panels, a line for each method: accuracy against times fewer FLOPs, and against the
    measured speed-up. Accuracy without any recovery is in the table, and drawn only where nothing was recovered.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    methods = [m for m in results["settings"]["methods"] if m != "plain"]
    rows_of = recoveries(results)
    with picture(path, columns=2, rows=len(rows_of), note=_note(results)) as (figure, panels):
        for place, recovery in enumerate(rows_of):
            left, right = panels[2 * place : 2 * place + 2]
            draw_accuracies(left, results, recovery, by="predicted_speedup")
            draw_accuracies(right, results, recovery, by="speedup")
            left.set_ylabel("test accuracy, %")
            right.sharey(left)
            head(left, "without recovery" if recovery == "none" else f"recovery: {recovery}")
            head(right, f"the same, measured on {device_text(results)}")
        handles, labels = method_handles(methods)
        data = results["data"].split(":")[0]
        title = f"{data}: {model_text(results['model'])}, {counted(len(results['models']), 'trained plain model')}"
        shared_legend(figure, handles, labels, title=title)


def recoveries(results: Mapping[str, Any]) -> list[str]:
    """The recoveries that are drawn, in words: those with any training, where there are some."""
    found = list(dict.fromkeys(recovery_text(row) for row in results["curves"] if row["method"] != "plain"))
    return [recovery for recovery in found if recovery != "none"] or found


def device_text(results: Mapping[str, Any]) -> str:
    """What the speed was measured on, as short as it can be said."""
    return str(results["speed"]["environment"]["device_name"]).removeprefix("NVIDIA ").split(" @ ")[0]


def draw_accuracies(axes: Axes, results: Mapping[str, Any], recovery: str, *, by: str) -> None:
    """Draw a line for each method: accuracy against "predicted_speedup" (by FLOPs) or the measured "speedup"."""
    methods = [m for m in results["settings"]["methods"] if m != "plain"]
    colours, markers = variant_colours(methods), variant_markers(methods)
    for method in methods:
        rows = [r for r in results["curves"] if r["method"] == method and recovery_text(r) == recovery]
        for staged in (False, True):
            line = [row for row in rows if bool(row.get("keep_rate")) == staged]
            if line:
                _line(axes, results, line, by, colours[method], markers[method])
    plain = 100 * sum(p["accuracy"] for p in results["plain"]) / len(results["plain"])
    axes.axhline(plain, color=GREY, lw=1, ls=":")
    words = {"predicted_speedup": "times fewer FLOPs than plain", "speedup": "inference, times as fast as plain"}
    axes.set_xlabel(words[by])


def method_handles(methods: Sequence[str]) -> tuple[list[Line2D], list[str]]:
    """The legend of the methods, with plain before them."""
    colours, markers = variant_colours(methods), variant_markers(methods)
    handles = [Line2D([], [], color=colours[m], marker=markers[m], lw=1.8) for m in methods]
    return [Line2D([], [], color=GREY, lw=1, ls=":"), *handles], ["plain", *(method_text(m) for m in methods)]


def _note(results: dict[str, Any]) -> str:
    models = len(results["models"])
    asked = [
        f"Speed-up asked for {wanted}: {place['num_tokens']} tokens after block {place['after']}."
        for wanted, place in results["places"].items()
    ] + [
        f"Keep rate {rate}: {', '.join(map(str, place['num_tokens']))} tokens after blocks "
        f"{', '.join(map(str, place['after']))}."
        for rate, place in results.get("stages", {}).items()
    ]
    spread = f"Mean ± standard deviation of {models} models. " if models > 1 else ""
    return (
        f"{' '.join(asked)}\n{spread}Speed: median of the paired ratios of interleaved rounds, bars: their quartiles; "
        f"{results['speed']['environment']['device_name']}.\nAxes do not begin at 0."
    )


def _line(
    axes: Axes, results: Mapping[str, Any], rows: list[dict[str, Any]], by: str, colour: str, marker: str
) -> None:
    """One method, from the slowest to the fastest by FLOPs: a measured speed-up need not rise with it."""
    timings = {t["name"]: t for t in results["speed"]["timings"]}
    rows = sorted(rows, key=lambda row: timings[row["timed_as"]]["predicted_speedup"])
    of_rows = [timings[row["timed_as"]] for row in rows]
    bars = [speed_bars(t["ratio_quartiles"], t["speedup"]) for t in of_rows]
    sds = [100 * (row["sd"] or 0) for row in rows]
    axes.errorbar(
        [t[by] for t in of_rows], [100 * row["accuracy"] for row in rows], yerr=sds if any(sds) else None,
        xerr=[[bar[side][0] for bar in bars] for side in (0, 1)] if by == "speedup" else None, fmt=f"{marker}-", ms=5,
        lw=1.8, elinewidth=1, capsize=3, color=colour,
    )  # fmt: skip
