"""The picture of ``patchmerger accelerate-study``: accuracy kept against FLOPs and measured speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

FILE = "accelerations.png"
_KNOWN = ("located", "average")  # methods with a colour of their own in every picture
_RANKED = 6  # methods at one speed-up from which on their markers would cover each other


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger accelerate-study`` as a PNG.

    For each recovery a row of two panels, a line for each method: accuracy against times fewer FLOPs, and against the
    measured speed-up. Accuracy without any recovery is in the table, and drawn only where nothing was recovered.
    Many methods at one speed-up after one recovery are ranked instead.
    """
    methods = [m for m in results["settings"]["methods"] if m != "plain"]
    rows_of = recoveries(results)
    if len(methods) > _RANKED and len(rows_of) == 1 and len(results["places"]) + len(results.get("stages", {})) == 1:
        _draw_ranked(results, rows_of[0], path)
        return
    with style.picture(path, columns=2, rows=len(rows_of), note=_note(results)) as (figure, panels):
        for place, recovery in enumerate(rows_of):
            left, right = panels[2 * place : 2 * place + 2]
            draw_accuracies(left, results, recovery, by="predicted_speedup")
            draw_accuracies(right, results, recovery, by="speedup")
            left.set_ylabel("test accuracy, %")
            right.sharey(left)
            style.head(left, "without recovery" if recovery == "none" else f"recovery: {recovery}")
            style.head(right, f"the same, measured on {device_text(results)}")
        handles, labels = method_handles(methods)
        style.shared_legend(figure, handles, labels, title=numbers.models_text(results), columns=6)


def _draw_ranked(results: Mapping[str, Any], recovery: str, path: Path) -> None:
    """A line of the picture for each method, the most accurate first: accuracy with recovery and without, speed."""
    rows = {(row["method"], recovery_text(row)): row for row in results["curves"] if row["method"] != "plain"}
    ranked = sorted((m for m, length in rows if length == recovery), key=lambda m: rows[m, recovery]["accuracy"])
    drawn = [recovery, *({length for _, length in rows} - {recovery})]
    timings, height = numbers.timings_of(results["speed"]), 0.8 + 0.24 * len(ranked)
    colours = {m: colour if m in _KNOWN else style.GREY for m, colour in style.variant_colours(ranked).items()}
    with style.picture(
        path, columns=len(drawn) + 1, note=f"Dotted: plain. {_note(results)}", title=numbers.models_text(results),
        panel=(3.4, height),
    ) as (_, panels):  # fmt: skip
        for place, method in enumerate(ranked):
            look: Any = {"fmt": "o", "ms": 6, "elinewidth": 1, "capsize": 3, "color": colours[method]}
            for axes, length in zip(panels, drawn, strict=False):
                if row := rows.get((method, length)):
                    axes.errorbar(100 * row["accuracy"], place, xerr=100 * (row["sd"] or 0) or None, **look)
            timing = timings[rows[method, recovery]["timed_as"]]
            panels[-1].errorbar(timing["speedup"], place, xerr=style.error_bar(timing), **look)
        for axes, length in zip(panels, drawn, strict=False):
            axes.axvline(100 * numbers.plain_accuracy(results), color=style.GREY, lw=1, ls=":")
            axes.set_xlabel("test accuracy, %")
            style.head(axes, "without recovery" if length == "none" else f"recovery: {length}")
        panels[-1].set_xlabel("inference, times as fast as plain")
        style.head(panels[-1], f"measured on {device_text(results)}")
        for axes in panels:
            axes.locator_params(axis="x", nbins=5)
            axes.set_yticks(range(len(ranked)), map(numbers.method_text, ranked) if axes is panels[0] else [])
            axes.set_yticks(range(len(ranked)), minor=True)
            axes.tick_params(axis="y", which="minor", length=0)
            axes.grid(axis="y", which="minor", alpha=0.25)


def recovery_text(row: Mapping[str, Any], *, short: bool = False) -> str:
    """For how long was trained, and what."""
    length = numbers.epochs_text(row["epochs"])
    return "none" if not row["epochs"] else length if short else f"{row['scope']}, {length}"


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
    looks = method_looks(methods)
    for method in methods:
        rows = [r for r in results["curves"] if r["method"] == method and recovery_text(r) == recovery]
        for staged in (False, True):
            line = [row for row in rows if bool(row.get("keep_rate")) == staged]
            if line:
                _line(axes, results, line, by, looks[method])
    axes.axhline(100 * numbers.plain_accuracy(results), color=style.GREY, lw=1, ls=":")
    words = {"predicted_speedup": "times fewer FLOPs than plain", "speedup": "inference, times as fast as plain"}
    axes.set_xlabel(words[by])


def method_looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each method: no two are alike."""
    colours, markers, lines = (
        look(methods) for look in (style.variant_colours, style.variant_markers, style.variant_lines)
    )
    return {m: {"color": colours[m], "marker": markers[m], "ls": lines[m], "lw": 1.8} for m in methods}


def method_handles(methods: Sequence[str]) -> tuple[list[Line2D], list[str]]:
    """The legend of the methods, with plain before them."""
    handles = [Line2D([], [], **look) for look in method_looks(methods).values()]
    plain = Line2D([], [], color=style.GREY, lw=1, ls=":")
    return [plain, *handles], ["plain", *map(numbers.method_text, methods)]


def places_text(results: Mapping[str, Any]) -> str:
    """Where is merged for each speed-up and keep rate that was asked for."""
    places = [
        f"{wanted} times: {place['num_tokens']} tokens after block {place['after']}"
        for wanted, place in results["places"].items()
    ]
    for rate, stages in results.get("stages", {}).items():
        tokens, after = (", ".join(map(str, stages[name])) for name in ("num_tokens", "after"))
        places.append(f"keep rate {rate}: {tokens} tokens after blocks {after}")
    return "; ".join(places)


def _note(results: Mapping[str, Any]) -> str:
    models = len(results["models"])
    spread = f"Mean ± standard deviation of {models} models. " if models > 1 else ""
    return (
        f"Asked for {places_text(results)}.\n{spread}Speed: median of the paired ratios of interleaved rounds, bars: "
        f"their quartiles; {results['speed']['environment']['device_name']}.\nAxes do not begin at 0."
    )


def _line(axes: Axes, results: Mapping[str, Any], rows: list[dict[str, Any]], by: str, look: Mapping[str, Any]) -> None:
    """One method, from the slowest to the fastest by FLOPs: a measured speed-up need not rise with it."""
    timings = numbers.timings_of(results["speed"])
    rows = sorted(rows, key=lambda row: timings[row["timed_as"]]["predicted_speedup"])
    of_rows = [timings[row["timed_as"]] for row in rows]
    bars = [numbers.speed_bar(t) for t in of_rows]
    xerr = list(zip(*bars, strict=True)) if by == "speedup" else None
    style.accuracy_line(axes, [t[by] for t in of_rows], rows, xerr=xerr, **look)
