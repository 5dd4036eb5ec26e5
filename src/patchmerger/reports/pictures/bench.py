"""The picture of ``patchmerger bench``: speed-up against batch size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style
from patchmerger.speed.settings import compile_name

_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b2a")


def format_text(key: Mapping[str, Any]) -> str:
    """Number format and mode of a row."""
    return f"{key['precision']}, {compile_name(key['compile'])}"


def merged_timing(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The timing of the merged model in a row."""
    merged: Mapping[str, Any] = next(t for t in row["measurement"]["timings"] if t["name"] == "merged")
    return merged


def rounds_text(results: Mapping[str, Any]) -> str:
    """The number of rounds in the rows, such as "5 to 20"."""
    counts = sorted({row["measurement"]["rounds"] for row in results["rows"] if row["measurement"]}) or [0]
    return " to ".join(dict.fromkeys(str(counts[place]) for place in (0, -1)))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger bench`` as a PNG.

    A panel for each model and for inference and training: medians of the paired ratios with their quartiles, against
    the batch size; the lines are what FLOPs predict and, dashed, what a roofline allows.

    Raises:
        ValueError: No row was measured.
    """
    rows = [row for row in results["rows"] if row["measurement"] is not None]
    if not rows:
        raise ValueError("no row was measured: there is nothing to draw")
    names = list(dict.fromkeys(row["key"]["model"] for row in rows))
    phases = sorted({row["key"]["training"] for row in rows})
    series = dict.fromkeys(_series(row) for row in rows)
    colours = dict(zip(series, cycle(_COLOURS), strict=False))
    where = results["environment"]
    note = (
        f"Points: medians of the paired ratios of {rounds_text(results)} interleaved rounds, bars: their quartiles; "
        f"hollow points are uncertain. {where['device_name']}, {where['threads']} threads.\n"
        "Vertical axes do not begin at 0."
    )
    others = dict.fromkeys(t["name"] for row in rows for t in row["measurement"]["timings"][2:])
    with style.picture(path, columns=len(phases), rows=len(names), note=note) as (figure, panels):
        pairs = [(name, training) for name in names for training in phases]
        for axes, (name, training) in zip(panels, pairs, strict=True):
            chosen = [r for r in rows if (r["key"]["model"], r["key"]["training"]) == (name, training)]
            _panel(axes, chosen, colours)
            style.head(axes, f"{numbers.model_name(name)}, {'training step' if training else 'inference'}")
        handles: dict[str, Artist] = {label: Line2D([], [], color=colours[label], marker="o", lw=2) for label in series}
        handles |= {other: Line2D([], [], color=style.GREY, marker="s", ls=":", lw=1) for other in others}
        handles |= {
            "allowed by the roofline": Line2D([], [], color=style.GREY, ls="--", lw=1.2),
            "predicted by FLOPs": Line2D([], [], color=style.GREY, lw=1.5),
        }
        merges = dict.fromkeys(_merges_text(row) for row in rows)
        title = f"With the merger ({'; '.join(filter(None, merges)) or 'as saved'}), times as fast as without"
        style.shared_legend(figure, list(handles.values()), list(handles), title=title, columns=2 * len(phases))


def _merges_text(row: Mapping[str, Any]) -> str:
    pairs = zip(row["num_tokens"], row["after"], strict=True)
    return ", ".join(f"{numbers.counted(tokens, 'token')} after block {after}" for tokens, after in pairs)


def _series(row: Mapping[str, Any]) -> str:
    return f"{format_text(row['key'])}, {row['key']['device']}"


def _panel(axes: Axes, rows: list[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """One model in one phase: a colour for each number format, mode and device."""
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=style.GREY)
        return
    labels = list(dict.fromkeys(map(_series, rows)))
    for place, label in enumerate(labels):
        shift = 2 ** (0.1 * (place - (len(labels) - 1) / 2))  # beside each other, so that no bar hides another
        points = sorted((r for r in rows if _series(r) == label), key=lambda r: int(r["key"]["batch_size"]))
        sizes = [shift * row["key"]["batch_size"] for row in points]
        for name in [t["name"] for t in points[0]["measurement"]["timings"] if t["name"] != "plain"]:
            timings = [next(t for t in row["measurement"]["timings"] if t["name"] == name) for row in points]
            _attained(axes, sizes, timings, colours[label], ours=name == "merged")
            if name == "merged" and all(t["roofline_speedup"] for t in timings):
                axes.plot(sizes, [t["roofline_speedup"] for t in timings], "--", lw=1.2, color=colours[label])
    if predicted := merged_timing(rows[0])["predicted_speedup"]:
        axes.axhline(predicted, color=style.GREY, lw=1.5)
    axes.axhline(1, color=style.GREY, lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    sizes = sorted({row["key"]["batch_size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.margins(x=0.1, y=0.12)
    axes.set_ylim(bottom=min(0.9, axes.get_ylim()[0]))
    axes.set_xlabel("batch size")
    axes.set_ylabel("times as fast")


def _attained(axes: Axes, sizes: list[float], timings: Iterable[Mapping[str, Any]], colour: str, *, ours: bool) -> None:
    """Medians, with bars from quartile to quartile."""
    timings = list(timings)
    look: dict[str, Any] = {"ls": "-", "lw": 2} if ours else {"ls": ":", "lw": 1}
    axes.plot(sizes, [t["speedup"] for t in timings], color=colour, **look)
    for size, timing in zip(sizes, timings, strict=True):
        axes.errorbar(
            size, timing["speedup"], yerr=style.error_bar(timing), capsize=4,
            fmt="o" if ours else "s", ms=7 if ours else 4, color=colour, mec=colour,
            mfc="white" if timing["uncertain"] else colour,
        )  # fmt: skip
