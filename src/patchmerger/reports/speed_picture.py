"""The picture of a benchmark: attained speed-up against batch size, under the predicted ceiling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchmerger.speed.compiling import compile_name

COLOURS = ["#d1495b", "#3b8ea5", "#c79a2d", "#2f7d4f", "#8d5fbf", "#7a4b2a"]
_GREY = "#4d5562"


def draw_speed(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger bench`` as a PNG.

    A panel for each model and for inference and training. Points are medians over the rounds, bars their quartiles;
    the line is the ceiling that FLOPs predict, the dashed ones are what a roofline allows.

    Args:
        results: The content of its JSON file.
        path: The file.

    Raises:
        ValueError: No row was measured.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [row for row in results["rows"] if row["measurement"] is not None]
    if not rows:
        raise ValueError("no row was measured: there is nothing to draw")
    names = list(dict.fromkeys(row["key"]["model"] for row in rows))
    phases = sorted({row["key"]["training"] for row in rows})
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.2 * len(phases), 4 * len(names)), dpi=160, layout="constrained")
        panels = figure.subplots(len(names), len(phases), squeeze=False)
        for line, name in zip(panels, names, strict=True):
            for axes, training in zip(line, phases, strict=True):
                chosen = [r for r in rows if (r["key"]["model"], r["key"]["training"]) == (name, training)]
                _panel(axes, chosen)
                phase = "training step" if training else "inference"
                axes.set_title(f"{Path(name).name}, {phase}", loc="left", weight="bold")
        figure.savefig(path)


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    """One model in one phase: a colour for each number format, mode and device."""
    devices = {row["key"]["device"] for row in rows}
    series: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = row["key"]
        label = f"{key['precision']}, {compile_name(key['compile'])}"
        series.setdefault(label + (f", {key['device']}" if len(devices) > 1 else ""), []).append(row)
    for colour, (label, points) in zip(COLOURS * len(series), series.items(), strict=False):
        points = sorted(points, key=lambda row: row["key"]["batch_size"])
        sizes = [row["key"]["batch_size"] for row in points]
        for name in [t["name"] for t in points[0]["measurement"]["timings"] if t["name"] != "plain"]:
            timings = [next(t for t in row["measurement"]["timings"] if t["name"] == name) for row in points]
            ours = name == "merged"
            style = {"fmt": "o-", "ms": 6, "lw": 2} if ours else {"fmt": "s:", "ms": 4, "lw": 1}
            _attained(axes, sizes, timings, label=label if ours else f"{name}, {label}", color=colour, **style)
            if ours and all(t["roofline_speedup"] for t in timings):
                allowed = [t["roofline_speedup"] for t in timings]
                axes.plot(sizes, allowed, "--", lw=1.2, color=colour, label=f"roofline, {label}")
    predicted = [t["predicted_speedup"] for row in rows for t in row["measurement"]["timings"] if t["name"] == "merged"]
    if predicted[0]:
        axes.axhline(predicted[0], color=_GREY, lw=1.5, label=f"FLOPs: {predicted[0]:.2f}×")
    axes.axhline(1, color=_GREY, lw=0.8, ls=":")
    axes.set_xscale("log", base=2)
    sizes = sorted({row["key"]["batch_size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=min(0.9, axes.get_ylim()[0]))
    axes.set_xlabel(f"batch size ({rows[0]['measurement']['environment']['device_name']})")
    axes.set_ylabel("times faster than the plain model")
    axes.grid(alpha=0.25)
    axes.legend(facecolor="white", edgecolor="none", framealpha=0.9, loc="lower right", fontsize=8)


def _attained(axes: Any, sizes: list[int], timings: list[dict[str, Any]], **style: Any) -> None:
    """Medians, with bars from quartile to quartile."""
    middle = [t["speedup"] for t in timings]
    below = [t["speedup"] - 1 / t["ratio_quartiles"][1] for t in timings]
    above = [1 / t["ratio_quartiles"][0] - t["speedup"] for t in timings]
    axes.errorbar(sizes, middle, yerr=(below, above), capsize=4, **style)
