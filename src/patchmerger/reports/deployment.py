"""The tables and the picture of ``patchmerger bench --formats``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from rich import box
from rich.table import Table

from patchmerger.reports.style import head, picture, shared_legend, variant_colours
from patchmerger.reports.tables import print_table, report_console

COLUMNS = (
    "form",
    "weights",
    "",
    "median ms",
    "p95 ms",
    "images/s",
    "÷ plain eager",
    "÷ plain",
    "÷ predicted",
    "MiB",
    "agrees",
)


def show_deployment(results: Mapping[str, Any]) -> None:
    """Print the results of ``patchmerger bench --formats``."""
    console = report_console()
    for row in results["rows"]:
        for model in models_of(row):
            table = Table(
                title=f"{short_name(model)}, batch of {row['batch_size']}", title_justify="left", box=box.SIMPLE_HEAD
            )
            for number, column in enumerate(COLUMNS):
                table.add_column(column, justify="left" if number < 3 else "right", no_wrap=True)
            for cells in form_rows(results, row, model):
                table.add_row(*cells)
            print_table(console, table, keys=3)
    for line in notes(results):
        console.print(line, markup=False, highlight=False)


def models_of(row: Mapping[str, Any]) -> list[str]:
    """The names of the models in a row."""
    return list(dict.fromkeys(timing["key"]["model"] for timing in row["timings"]))


def short_name(model: str) -> str:
    """What a table or a panel calls a model: the last part of its path that is not just "model"."""
    parts = [part for part in model.split("/") if part not in ("", "model")]
    return parts[-1] if parts else model


def form_rows(results: Mapping[str, Any], row: Mapping[str, Any], model: str) -> list[list[str]]:
    """The cells of each form of a model at one batch size."""
    described = {tuple(form["key"].values()): form for form in results["forms"]}
    return [
        _cells(timing, described[tuple(timing["key"].values())])
        for timing in row["timings"]
        if timing["key"]["model"] == model
    ]


def _cells(timing: Mapping[str, Any], form: Mapping[str, Any]) -> list[str]:
    key, parity = timing["key"], form["parity"]
    over_plain, predicted = timing["over_plain"], timing["predicted"]
    return [
        key["form"],
        key["precision"],
        "merged" if key["merged"] else "plain",
        f"{1e3 * timing['median']:,.1f}",
        f"{1e3 * timing['p95']:,.1f}",
        f"{timing['images_per_second']:,.1f}",
        f"{timing['over_eager'][1]:.2f}×" if timing["over_eager"] else "–",
        f"{over_plain[1]:.2f}×" if over_plain else "–",
        f"{over_plain[1] / predicted:.2f}" if over_plain and predicted else "–",
        f"{form['size'] / 2**20:,.1f}",
        f"{parity['agreement']:.1%}" if parity else "–",
    ]


def notes(results: Mapping[str, Any]) -> list[str]:
    """What the columns mean, what could not be made, and what it was measured on."""
    where, forms = results["environment"], results["forms"]
    rows, settings = results["rows"], results["settings"]
    lines = [f"not measured: {name_of(form['key'])}: {form['error']}" for form in forms if form["error"]]
    lines += [
        f"{name_of(form['key'])}: {len(form['float_layers'])} layers stayed in floating point"
        for form in forms
        if not form["error"] and form["float_layers"]
    ]
    lines.append(
        "÷ plain eager: times as fast as the plain model in torch, eager, float32; ÷ plain: as the plain model in "
        "the same form and weights; ÷ predicted: that by the FLOPs"
    )
    if compared := [form["parity"] for form in forms if not form["error"] and form["parity"]]:
        lines.append(
            f"agrees: same class on top as the eager model, of {compared[0]['images']} {compared[0]['source']}"
        )
    has = [name for name, there in where["arithmetic"].items() if there]
    libraries = ", ".join(
        f"{name} {where[name]}" for name in ("torch", "onnxruntime", "openvino", "nncf") if where[name]
    )
    lines.append(
        f"medians of {settings['rounds']} rounds, all forms interleaved; {where['device_name']}, {where['threads']} "
        f"threads ({', '.join(has)}), load {rows[-1]['load'] if rows else where['load_average']}; {libraries}"
    )
    return lines


def name_of(key: Mapping[str, Any]) -> str:
    """What to call a form in a line of text."""
    return f"{short_name(key['model'])} {'merged' if key['merged'] else 'plain'}, {key['form']}, {key['precision']}"


def draw_deployment(results: Mapping[str, Any], path: Path) -> None:
    """Draw images a second in each form as a PNG, plain beside merged; a panel for each model and batch size.

    Args:
        results: The content of the JSON file.
        path: The file.
    """
    panels = [(model, row) for row in results["rows"] for model in models_of(row)]
    colours = variant_colours(["plain", "merged"])
    where = results["environment"]
    note = (
        f"Medians of {results['settings']['rounds']} rounds, all forms interleaved, on {where['device_name']}, "
        f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}. ×: times as fast as plain, eager, float32."
    )
    with picture(path, columns=len(panels), note=note) as (figure, axes):
        for (model, row), panel in zip(panels, axes, strict=True):
            _draw_panel(panel, [t for t in row["timings"] if t["key"]["model"] == model], colours)
            head(panel, f"{short_name(model)}, batch of {row['batch_size']}")
        handles = [Patch(color=colours[name]) for name in ("plain", "merged")]
        shared_legend(figure, handles, ["plain", "merged"], title="images a second, by what the model is deployed as")


def _draw_panel(axes: Axes, timings: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    names = list(dict.fromkeys(f"{t['key']['form']}\n{t['key']['precision']}" for t in timings))
    fastest = max(timing["images_per_second"] for timing in timings)
    for timing in timings:
        key = timing["key"]
        place = names.index(f"{key['form']}\n{key['precision']}") + (0.2 if key["merged"] else -0.2)
        speed = timing["images_per_second"]
        axes.barh(place, speed, height=0.38, color=colours["merged" if key["merged"] else "plain"])
        if timing["over_eager"]:
            axes.text(speed + 0.01 * fastest, place, f"{timing['over_eager'][1]:.1f}×", va="center", fontsize=8)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * fastest)
    axes.set_xlabel("images/s")
