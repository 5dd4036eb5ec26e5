"""The tables and the picture of ``patchmerger bench``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from patchmerger.reports.numbers import counted, model_name
from patchmerger.reports.style import GREY, head, picture, shared_legend, speed_bars
from patchmerger.speed.record import RowKey
from patchmerger.speed.roofline import PeakRates
from patchmerger.speed.settings import compile_name

_COLUMNS = ("batch", "images/s", "speed-up", "quartiles", "FLOPs", "roofline", "MiB", "kept")
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b2a")


def show_speed(results: Mapping[str, Any], *, resumable: bool = False) -> int:
    """Print the results of ``patchmerger bench``.

    Args:
        results: The content of its JSON file.
        resumable: Whether they are in a file, so that the same command goes on with them.

    Returns:
        The exit status: 130 if it was interrupted, 2 if no row was measured.
    """
    Console(highlight=False).print(speed_tables(results, resumable=resumable))
    if not results["finished"]:
        return 130
    return 0 if any(row["measurement"] for row in results["rows"]) else 2


def speed_tables(results: Mapping[str, Any], *, resumable: bool = False) -> RenderableType:
    """The tables of a benchmark, what they mean, and what they were measured on; as wide as the terminal is."""
    groups: dict[tuple[str, bool, str, str], list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        key = row["key"]
        group = (key["model"], key["training"], key["device"], _format(key))
        groups.setdefault(group, []).append(row)
    parts: list[RenderableType] = []
    for rows in groups.values():
        parts += _group(rows)
    for profile in results["profiles"]:
        if profile["error"] is None:
            parts += _profile(profile)
    every_row = (*results["rows"], *results["profiles"])
    lines = [f"not measured: {_label(row['key'])}: {row['error']}" for row in every_row if row["error"]]
    measured = [(row["key"], _merged(row)) for row in results["rows"] if row["measurement"]]
    lines += [f"slower with the merger: {_label(k)}: {t['speedup']:.2f}×" for k, t in measured if t["speedup"] < 1]
    lines += [f"uncertain: {_label(k)}: {t['uncertain']}" for k, t in measured if t["uncertain"]]
    return Group(*parts, *map(Text, [*lines, *_conditions(results, resumable)]))


def _format(key: Mapping[str, Any]) -> str:
    return f"{key['precision']}, {compile_name(key['compile'])}"


def _label(key: Mapping[str, Any]) -> str:
    return str(RowKey(**key))


def _merged(row: Mapping[str, Any]) -> Mapping[str, Any]:
    merged: Mapping[str, Any] = next(t for t in row["measurement"]["timings"] if t["name"] == "merged")
    return merged


def _group(rows: list[Mapping[str, Any]]) -> list[RenderableType]:
    """One table: a model in inference or training, in one number format on one device."""
    first, key = rows[0], rows[0]["key"]
    places = ", ".join(f"{m} tokens after block {a}" for m, a in zip(first["num_tokens"], first["after"], strict=True))
    if first["placed"] is not None:
        places = f"{first['placed']} placed tokens{', ' if places else ''}{places}"
    what = "training step" if key["training"] else "inference"
    predicted = next((_merged(row)["predicted_speedup"] for row in rows if row["measurement"]), None)
    by_flops = f"; FLOPs predict {predicted:.2f}×" if predicted else ""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    lines = [line for row in rows for line in _against(row)]
    title = f"{key['model']}, {places}: {what}, {_format(key)}, {key['device']}{by_flops}"
    return [Text(title), table, *map(Text, lines)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [str(row["key"]["batch_size"])]
    if row["measurement"] is None:
        return [*cells, row["error"].split(" (")[0].split(":")[0][:24], *(["–"] * (len(_COLUMNS) - 2))]
    timings = {t["name"]: t for t in row["measurement"]["timings"]}
    plain, merged = timings["plain"], timings["merged"]
    low, high = (1 / ratio for ratio in reversed(merged["ratio_quartiles"]))
    cells += [" → ".join(f"{t['images_per_second']:,.1f}" for t in (plain, merged))]
    cells += [f"{merged['speedup']:.2f}×{'?' * bool(merged['uncertain'])}", f"{low:.2f}–{high:.2f}"]
    cells.append(f"{merged['of_predicted']:.0%}" if merged["predicted_speedup"] else "–")
    roofline = merged["roofline_speedup"]
    cells.append(f"{roofline:.2f}× ({merged['of_roofline']:.0%})" if roofline else "–")
    if plain["peak_memory"] is None:
        return [*cells, "–", "–"]
    cells.append(" → ".join(f"{t['peak_memory'] / 2**20:,.0f}" for t in (plain, merged)))
    return [*cells, f"{merged['activation_memory'] / plain['activation_memory']:.2f}"]


def _against(row: Mapping[str, Any]) -> list[str]:
    """How another library's merged model does in a row, in words."""
    if row["measurement"] is None:
        return []
    timings = {t["name"]: t for t in row["measurement"]["timings"]}
    return [
        f"batch of {row['key']['batch_size']}: {other} is {timings[other]['speedup']:.2f}× as fast as plain; merged is "
        f"{middle:.2f}× as fast as {other} ({low:.2f} … {high:.2f})"
        for other, (middle, (low, high)) in row["merged_against"].items()
    ]


def _profile(profile: Mapping[str, Any]) -> list[RenderableType]:
    """One table: the parts of a forward pass, plain beside merged."""
    key = profile["key"]
    title = f"{key['model']}, parts of a forward pass, batch of {key['batch_size']}, {_format(key)}, {key['device']}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("part", no_wrap=True)
    for column in ("plain\nms", "share", "merged\nms", "share", "GFLOPs/s", "speed-up", "by FLOPs"):
        table.add_column(column, justify="right")
    plain = {part["name"]: part for part in profile["models"]["plain"]}
    for part in profile["models"]["merged"]:
        other = plain.get(part["name"])
        before, ratios = ["–"] * 2, ["–", "–"]
        if other:
            before = _part_cells(other)
            fewer = other["flops"] / part["flops"] if part["flops"] else None
            ratios = [f"{other['seconds'] / part['seconds']:.2f}×", f"{fewer:.2f}×" if fewer else "–"]
        table.add_row(
            part["name"], *before, *_part_cells(part), f"{part['flops_per_second'] / 1e9:,.1f}", *ratios
        )  # fmt: skip
    return [Text(title), table]


def _part_cells(part: Mapping[str, Any]) -> list[str]:
    return [f"{part['seconds'] * 1e3:.2f}", f"{part['share']:.1%}"]


def _conditions(results: Mapping[str, Any], resumable: bool) -> list[str]:
    """How and on what it was measured."""
    settings, where = results["settings"], results["environment"]
    lines = [
        "images/s and MiB: plain → merged; FLOPs, roofline: how much of the speed-up that they predict is attained; "
        "kept: activations, merged ÷ plain"
    ]
    lines += dict.fromkeys(str(PeakRates(**row["peak_rates"])) for row in results["rows"])
    lines.append(
        f"medians of {rounds_text(results)} rounds after {settings['warmup']} warm-up steps, interleaved; "
        f"{where['device_name']}, {where['threads']} threads, load {where['load_average']}, torch {where['torch']}, "
        f"timm {where['timm']}"
    )
    if not results["finished"]:
        on = "; the same command goes on with the others" if resumable else ""
        lines.append(f"unfinished: {sum(bool(row['measurement']) for row in results['rows'])} rows measured{on}")
    return lines


def rounds_text(results: Mapping[str, Any]) -> str:
    """The number of rounds in the rows, such as "5 to 20"."""
    counts = sorted({row["measurement"]["rounds"] for row in results["rows"] if row["measurement"]}) or [0]
    return " to ".join(dict.fromkeys(str(counts[place]) for place in (0, -1)))


def draw_speed(results: Mapping[str, Any], path: Path) -> None:
    """Draw the results of ``patchmerger bench`` as a PNG.

    A panel for each model and for inference and training: medians of the paired ratios with their quartiles, against
    the batch size; the lines are what FLOPs predict and, dashed, what a roofline allows.

    Args:
        results: The content of its JSON file.
        path: The file.

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
    with picture(path, columns=len(phases), rows=len(names), note=note) as (figure, panels):
        pairs = [(name, training) for name in names for training in phases]
        for axes, (name, training) in zip(panels, pairs, strict=True):
            chosen = [r for r in rows if (r["key"]["model"], r["key"]["training"]) == (name, training)]
            _panel(axes, chosen, colours)
            head(axes, f"{model_name(name)}, {'training step' if training else 'inference'}")
        handles: dict[str, Artist] = {label: Line2D([], [], color=colours[label], marker="o", lw=2) for label in series}
        handles |= {other: Line2D([], [], color=GREY, marker="s", ls=":", lw=1) for other in others}
        handles |= {
            "allowed by the roofline": Line2D([], [], color=GREY, ls="--", lw=1.2),
            "predicted by FLOPs": Line2D([], [], color=GREY, lw=1.5),
        }
        merges = dict.fromkeys(_merges_text(row) for row in rows)
        title = f"With the merger ({'; '.join(filter(None, merges)) or 'as saved'}), times as fast as without"
        shared_legend(figure, list(handles.values()), list(handles), title=title, columns=2 * len(phases))


def _merges_text(row: Mapping[str, Any]) -> str:
    pairs = zip(row["num_tokens"], row["after"], strict=True)
    return ", ".join(f"{counted(tokens, 'token')} after block {after}" for tokens, after in pairs)


def _series(row: Mapping[str, Any]) -> str:
    return f"{_format(row['key'])}, {row['key']['device']}"


def _panel(axes: Axes, rows: list[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """One model in one phase: a colour for each number format, mode and device."""
    if not rows:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
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
    if predicted := _merged(rows[0])["predicted_speedup"]:
        axes.axhline(predicted, color=GREY, lw=1.5)
    axes.axhline(1, color=GREY, lw=0.8, ls=":")
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
    style: dict[str, Any] = {"ls": "-", "lw": 2} if ours else {"ls": ":", "lw": 1}
    axes.plot(sizes, [t["speedup"] for t in timings], color=colour, **style)
    for size, timing in zip(sizes, timings, strict=True):
        axes.errorbar(
            size, timing["speedup"], yerr=speed_bars(timing["ratio_quartiles"], timing["speedup"]), capsize=4,
            fmt="o" if ours else "s", ms=7 if ours else 4, color=colour, mec=colour,
            mfc="white" if timing["uncertain"] else colour,
        )  # fmt: skip
