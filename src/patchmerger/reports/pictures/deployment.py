"""The picture of ``patchmerger bench --formats``: images a second in each form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import style


def models_of(row: Mapping[str, Any]) -> list[str]:
    """The names of the models in a row."""
    return list(dict.fromkeys(timing["key"]["model"] for timing in row["timings"]))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw images a second in each form as a PNG, plain beside merged; a panel for each model and batch size."""
    panels = [(model, row) for row in results["rows"] for model in models_of(row)]
    colours = style.variant_colours(["plain", "merged"])
    where = results["environment"]
    note = (
        f"Medians of {results['settings']['rounds']} rounds, all forms interleaved, on {where['device_name']}, "
        f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}. ×: times as fast as plain, eager, float32."
    )
    with style.picture(path, columns=len(panels), note=note) as (figure, axes):
        for (model, row), panel in zip(panels, axes, strict=True):
            _draw_panel(panel, [t for t in row["timings"] if t["key"]["model"] == model], colours)
            style.head(panel, f"{numbers.model_name(model)}, batch of {row['batch_size']}")
        handles = [Patch(color=colours[name]) for name in ("plain", "merged")]
        style.shared_legend(
            figure, handles, ["plain", "merged"], title="images a second, by what the model is deployed as"
        )


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
