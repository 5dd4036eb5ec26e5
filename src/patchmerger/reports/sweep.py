"""The table and the picture of ``patchmerger sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.reports.numbers import difference_text

# Settings that a grid may vary beside place and number of tokens, as tables call them.
OPTIONS = {"norm": "norm", "scale": "scale", "logit_std": "logit std"}

_WIDTH = 130  # a narrower terminal wraps, but no number is cut
_PLAIN = "#4d5562"
_COLOURS = ["#d1495b", "#3b8ea5", "#c79a2d", "#2f7d4f", "#8d5fbf", "#7a4b2a"]
_FURTHER = "#1f5fa8"

Cells = list[dict[str, Any]]


PICTURE_FILE = "sweep.png"


def report_sweep(results: dict[str, Any]) -> int:
    """Draw the picture of ``patchmerger sweep`` into its folder, and print the table."""
    if not results["missing"]:
        draw_sweep(results, Path(results["folder"]) / PICTURE_FILE)
    return show_sweep(results)


def draw_sweep(results: dict[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger sweep`` as a PNG.

    A row for each combination of the settings that vary beside place and number of tokens. Left: the metric against
    GFLOPs, a line for each number of tokens, its points named by the block that they merge after. Middle: the same
    against the measured speed-up in inference. Right: the difference to the plain model for each place and number.

    Args:
        results: The content of its ``results.json``.
        path: The file.
    """
    cells = [{**cell, "name": name} for name, cell in results["cells"].items()]
    gridded = [cell for cell in cells if cell["options"] is not None]
    rows = list(dict.fromkeys(_options_text(cell["options"]) for cell in gridded))
    further = [cell for cell in cells if cell["options"] is None and cell["metric_mean"] is not None]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 4.4 * len(rows)), dpi=150, layout="constrained")
        panels = figure.subplots(len(rows), 3, squeeze=False)
        for (cost, speed, heat), row in zip(panels, rows, strict=True):
            chosen = [cell for cell in gridded if _options_text(cell["options"]) == row]
            title = f", {row}" if row else ""
            for axes, against in ((cost, _gflops), (speed, _speedup)):
                _lines(axes, results, chosen, further, against)
            cost.set_xlabel("GFLOPs of one image (small numbers: merged after this block)")
            cost.set_title(f"Against cost{title}", loc="left", weight="bold")
            speed.set_xlabel(f"times faster than plain in inference\n({results['environment']['device_name']})")
            speed.set_title(f"Against measured speed{title}", loc="left", weight="bold")
            cost.legend(frameon=False, loc="best", fontsize=9)
            _heat_map(heat, results, chosen)
        figure.savefig(path)


def _options_text(options: dict[str, Any]) -> str:
    return ", ".join(f"{OPTIONS[name]} {value}" for name, value in options.items())


def _gflops(cell: dict[str, Any]) -> float | None:
    return float(cell["flops"]) / 1e9


def _speedup(cell: dict[str, Any]) -> float | None:
    if "speed" not in cell:
        return 1.0  # the plain model
    if cell["speed"] is None:
        return None
    return float(cell["speed"]["inference"]["timings"][1]["speedup"])


def _lines(axes: Axes, results: dict[str, Any], cells: Cells, further: Cells, against: Any) -> None:
    counts = sorted({cell["merge"]["num_tokens"] for cell in cells})
    for colour, count in zip(_COLOURS * len(counts), counts, strict=False):
        of_count = [cell for cell in cells if cell["merge"]["num_tokens"] == count]
        points = [cell for cell in of_count if cell["metric_mean"] is not None and against(cell) is not None]
        points.sort(key=lambda cell: cell["merge"]["after"])
        x = [against(cell) for cell in points]
        y = [100 * cell["metric_mean"] for cell in points]
        spread = [100 * (cell["metric_sd"] or 0) for cell in points]
        bars = spread if any(spread) else None
        axes.errorbar(x, y, yerr=bars, fmt="o-", ms=6, lw=1.5, capsize=3, color=colour, label=f"{count} tokens")
        for cell, place, height in zip(points, x, y, strict=True):
            axes.annotate(
                str(cell["merge"]["after"]),
                (place, height),
                xytext=(5, 5),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
    for cell in further:
        if against(cell) is not None:
            place, height = against(cell), 100 * cell["metric_mean"]
            axes.plot(place, height, "D", ms=6, color=_FURTHER)
            axes.annotate(
                cell["name"],
                (place, height),
                xytext=(6, -11),
                textcoords="offset points",
                color=_FURTHER,
                fontsize=8,
            )
    plain = results["plain"]
    if plain["metric_mean"] is not None:
        height, spread_of_plain = 100 * plain["metric_mean"], 100 * (plain["metric_sd"] or 0)
        axes.axhline(height, color=_PLAIN, lw=1, ls="--")
        if spread_of_plain:
            axes.axhspan(height - spread_of_plain, height + spread_of_plain, color=_PLAIN, alpha=0.1, lw=0)
        axes.plot(against(plain), height, "*", ms=13, color=_PLAIN, label="plain")
    axes.margins(x=0.08, y=0.12)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100.5))
    seeds = results["settings"]["seeds"]
    axes.set_ylabel(f"test {results['metric']}, %" + (f" (mean ± sd of {seeds} seeds)" if seeds > 1 else ""))
    axes.grid(alpha=0.25)


def _heat_map(axes: Axes, results: dict[str, Any], cells: Cells) -> None:
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
            text = "failed" if failed else f"{value:+.1f}" if base is not None else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set_yticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("merged after block")
    axes.set_ylabel("tokens that go on, M")
    what = "points above (blue) or below plain (red)" if base is not None else f"test {results['metric']}, %"
    axes.set_title(what[0].upper() + what[1:], loc="left", weight="bold")
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, fraction=0.05)


def show_sweep(results: dict[str, Any]) -> int:
    """Print the table of ``patchmerger sweep``; the exit status is 1 where a cell failed."""
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(_sweep_table(results))
    for unit, error in results["errors"].items():
        console.print(f"[bold]failed[/bold] {escape(unit)}: {escape(error)}", soft_wrap=True)
    if results["errors"]:
        console.print("The same command tries again what failed.")
    if results["missing"]:
        console.print(
            f"{len(results['missing'])} runs are not done, so speed is not measured and nothing is drawn yet."
        )
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)
    return 1 if results["errors"] else 0


def _sweep_table(results: dict[str, Any]) -> Table:
    seeds = results["settings"]["seeds"]
    title = f"{results['settings']['data']['source']}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    varied = [name for name in OPTIONS if results["settings"][name]]
    table.add_column("merged\nafter", justify="right")
    table.add_column("tokens\nM", justify="right")
    for name in varied:
        table.add_column(OPTIONS[name], justify="right")
    for column in (
        "GFLOPs", f"{results['metric']}\n%", "− plain, points\n[95% interval]", "trained\ns",
        "speed-up\n(predicted)", "speed-up\nin training", "rank\nof A", "queries\nalike",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    plain = results["plain"]
    table.add_row("plain", "", *("" for _ in varied), *_columns(plain, plain, None))
    for name, cell in results["cells"].items():
        merge, speed = cell["merge"], cell["speed"]
        if cell["options"] is None:
            first, options = [escape(name), _listed(merge["num_tokens"])], ["–"] * len(varied)
        else:
            first = [_listed(merge["after"]), _listed(merge["num_tokens"])]
            options = [str(cell["options"][option]) for option in varied]
        table.add_row(*first, *options, *_columns(cell, plain, speed))
    return table


def _columns(cell: dict[str, Any], plain: dict[str, Any], speed: dict[str, Any] | None) -> list[str]:
    gflops = f"{cell['flops'] / 1e9:.3g}"
    if cell["metric_mean"] is None:
        accuracy = ["–", "–", "–"]
    else:
        spread = "" if cell["metric_sd"] is None else f" ± {100 * cell['metric_sd']:.2f}"
        accuracy = [f"{100 * cell['metric_mean']:.2f}{spread}", difference_text(cell["difference"])]
        accuracy.append(f"{cell['train_seconds']:.0f}")
    if cell is plain:
        speeds = ["1", "1"]
    elif speed is None:
        speeds = [f"– ({plain['flops'] / cell['flops']:.2f})", "–"]
    else:
        inference, training = (speed[mode]["timings"][1]["speedup"] for mode in ("inference", "training"))
        speeds = [f"{inference:.2f} ({plain['flops'] / cell['flops']:.2f})", f"{training:.2f}"]
    mergers = (cell["merger"] or {}).values()
    ranks = [f"{m['effective_rank']:.1f}" for m in mergers]
    alike = [f"{m['similarity']:.2f}" for m in mergers if m["similarity"] is not None]
    return [gflops, *accuracy, *speeds, ", ".join(ranks), ", ".join(alike)]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "half" if value is None else str(value)
