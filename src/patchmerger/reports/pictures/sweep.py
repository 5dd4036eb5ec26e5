"""The picture of ``patchmerger sweep``: accuracy against cost and speed, and a map of the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style

FILE = "sweep.png"

OPTIONS = {"norm": "norm", "scale": "scale", "logit_std": "logit std"}
"""Settings that a grid may vary beside block and number of tokens, as tables and pictures call them."""

# The first cells outside the grid are marked a, b, c, …
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Cells = list[dict[str, Any]]


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger sweep`` as a PNG.

    Two rows for each combination of the settings that vary beside block and number of tokens. Left: the metric against
    GFLOPs, a line for each number of tokens, the block that is merged after in each marker. Right: the same against
    the measured speed-up in inference. Below: the difference to the plain model for each block and number.
    """
    cells = [{**cell, "name": name} for name, cell in results["cells"].items()]
    gridded = [cell for cell in cells if cell["options"] is not None]
    further = [cell for cell in cells if cell["options"] is None and cell["metric_mean"] is not None]
    rows = list(dict.fromkeys(_options_text(cell["options"]) for cell in gridded))
    counts = sorted({cell["merge"]["num_tokens"] for cell in gridded})
    colours = dict(zip(counts, style.ordered_colours(len(counts)), strict=True))
    with style.picture(path, columns=2, rows=2 * len(rows), note=_note(results)) as (figure, panels):
        for number, row in enumerate(rows):
            cost, speed, heat = _with_a_wide_one(panels[4 * number : 4 * number + 4])
            chosen = [cell for cell in gridded if _options_text(cell["options"]) == row]
            title = f", {row}" if row else ""
            _points(cost, results, chosen, further, colours, _gflops)
            style.head(cost, f"Accuracy against cost{title}")
            cost.set_xlabel("GFLOPs of one image")
            _points(speed, results, chosen, further, colours, _speedup)
            style.head(speed, f"Accuracy against measured speed{title}")
            speed.set_xlabel("inference, times as fast as plain")
            _heat_map(heat, results, chosen)
        lines = [Line2D([], [], color=colours[count], marker="o", ms=9, lw=1.5) for count in counts]
        letters = [Line2D([], [], color=style.GREY, marker="s", ms=6, mfc="white", lw=0) for _ in further]
        style.shared_legend(
            figure,
            [Line2D([], [], color=style.GREY, marker="*", ms=12, lw=1, ls="--"), *lines, *letters],
            ["plain", *(f"{count} tokens" for count in counts),
             *(f"{letter}: {cell['name']}" for letter, cell in _lettered(further))],
            title=numbers.run_text(results),
        )  # fmt: skip


def _note(results: Mapping[str, Any]) -> str:
    seeds = results["settings"]["seeds"]
    spread = f"Accuracy: mean ± standard deviation of {seeds} seeds (of plain a band). " if seeds > 1 else ""
    return (
        "In the markers: the block that is merged after; squares with letters: mergers outside the grid. Vertical axes "
        f"do not begin at 0. {spread}\nSpeed: median of the paired ratios of interleaved rounds, bars: their "
        f"quartiles; {results['environment']['device_name']}."
    )


def _options_text(options: dict[str, Any]) -> str:
    return ", ".join(f"{OPTIONS[name]} {value}" for name, value in options.items())


def _lettered(further: Cells) -> list[tuple[str, dict[str, Any]]]:
    return [(_LETTERS[place % len(_LETTERS)], cell) for place, cell in enumerate(further)]


def _with_a_wide_one(panels: Sequence[Axes]) -> tuple[Axes, Axes, Axes]:
    """Of two rows of two panels the upper ones, and one as wide as both in the place of the lower ones."""
    first, second, wide, spare = panels
    place, last = wide.get_subplotspec(), spare.get_subplotspec()
    if place is not None and last is not None:
        wide.set_subplotspec(place.get_gridspec()[last.rowspan.start, :])
    spare.remove()
    return first, second, wide


Against = Callable[[dict[str, Any]], tuple[float, list[list[float]] | None] | None]
"""Where a cell stands on the horizontal axis, with error bars; ``None`` where that is not known."""


def _gflops(cell: dict[str, Any]) -> tuple[float, None]:
    return float(cell["flops"]) / 1e9, None


def _speedup(cell: dict[str, Any]) -> tuple[float, list[list[float]] | None] | None:
    if "speed" not in cell:
        return 1.0, None  # the plain model
    if cell["speed"] is None:
        return None
    timing = cell["speed"]["inference"]["timings"][1]
    return timing["speedup"], style.error_bar(timing)


def _points(
    axes: Axes, results: Mapping[str, Any], cells: Cells, further: Cells, colours: dict[int, str], against: Against
) -> None:
    plain = results["plain"]
    if plain["metric_mean"] is not None:
        height, sd = 100 * plain["metric_mean"], 100 * (plain["metric_sd"] or 0)
        axes.axhline(height, color=style.GREY, lw=1, ls="--")
        axes.axhspan(height - sd, height + sd, color=style.GREY, alpha=0.1, lw=0)
        found = against(plain)
        axes.plot(0 if found is None else found[0], height, "*", ms=14, color=style.GREY, zorder=4)
    for count, colour in colours.items():
        line = [cell for cell in cells if cell["merge"]["num_tokens"] == count and cell["metric_mean"] is not None]
        line.sort(key=lambda cell: cell["merge"]["after"])
        placed = [(found[0], 100 * cell["metric_mean"]) for cell in line if (found := against(cell)) is not None]
        if placed:
            axes.plot(*zip(*placed, strict=True), "-", color=colour, lw=1.5, zorder=2)
        for cell in line:
            _point(axes, cell, against, str(cell["merge"]["after"]), colour, "o")
    labels = []
    for letter, cell in _lettered(further):
        _point(axes, cell, against, "", "white", "s")
        if (found := against(cell)) is not None:
            labels.append((found[0], 100 * cell["metric_mean"], letter))
    axes.margins(x=0.1, y=0.12)
    style.limit_percent(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    points = [(found[0], 100 * cell["metric_mean"]) for cell in (*cells, plain) if cell["metric_mean"] is not None
              and (found := against(cell)) is not None]  # fmt: skip
    style.label_beside(axes, labels, points)
    axes.set_ylabel(f"test {results['metric']}, %")


def _point(axes: Axes, cell: dict[str, Any], against: Against, text: str, colour: str, marker: str) -> None:
    """A marker with a text in it, and its error bars."""
    found = against(cell)
    if found is None:
        return
    (x, bars), y, sd = found, 100 * cell["metric_mean"], 100 * (cell["metric_sd"] or 0)
    edge = style.GREY if colour == "white" else colour
    axes.errorbar(
        x, y, xerr=bars, yerr=sd or None, fmt=marker, ms=11 if text else 6, capsize=2, lw=1, color=colour, ecolor=edge,
        mec=edge, zorder=3,
    )  # fmt: skip
    axes.annotate(text, (x, y), ha="center", va="center", color="white", fontsize=8, weight="bold", zorder=5)


def _heat_map(axes: Axes, results: Mapping[str, Any], cells: Cells) -> None:
    places = sorted({cell["merge"]["after"] for cell in cells})
    counts = sorted({cell["merge"]["num_tokens"] for cell in cells}, reverse=True)
    base = results["plain"]["metric_mean"]
    values = [[float("nan")] * len(places) for _ in counts]
    for cell in cells:
        if cell["metric_mean"] is not None:
            row, column = counts.index(cell["merge"]["num_tokens"]), places.index(cell["merge"]["after"])
            values[row][column] = 100 * (cell["metric_mean"] - (base or 0))
    known = [value for line in values for value in line if value == value]
    # White is the plain model; where it has failed, the colours show the metric itself.
    reach = max([abs(value) for value in known], default=1) or 1
    limits = (-reach, reach) if base is not None else (min(known, default=0), max(known, default=1))
    image = axes.imshow(
        values, cmap="RdBu" if base is not None else "Blues", vmin=limits[0], vmax=limits[1], aspect="auto"
    )
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            failed = value != value
            dark = not failed and base is not None and abs(value) > 0.6 * reach
            text = "failed" if failed else f"{value:+.1f}".replace("-", "−") if base is not None else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set_yticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("merged after block")
    axes.set_ylabel("tokens that go on, M")
    what = "points above (blue) or below plain (red)" if base is not None else f"test {results['metric']}, %"
    axes.set_title(what[0].upper() + what[1:], loc="left", weight="bold")
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, fraction=0.05)
