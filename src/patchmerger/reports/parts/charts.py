"""The charts of a report, in plotly's form: accuracy against speed or tokens, curves of training, speed-ups by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from patchmerger.reports.parts.colours import chart_colours, chart_symbols, faint
from patchmerger.reports.parts.numbers import count_text, gflops_text, merges_text, speed_bar

_FEW = 10
_HOVER = "%{hovertext}<extra></extra>"
_BAR: dict[str, Any] = {"type": "data", "thickness": 1.2, "width": 4}

SPEED_CAPTION = (
    "Speed: median of the paired ratios of interleaved rounds, bars from quartile to quartile; hollow marks are "
    "uncertain."
)
AXES_CAPTION = "The dotted line is plain; the vertical axis does not begin at 0."


@dataclass(frozen=True)
class Chart:
    """A chart of plotly, with colours as :mod:`~patchmerger.reports.parts.colours` writes them.

    The caption says what bars and marks mean, and which axes are cut; the summary, for who cannot see it, what it
    shows.
    """

    title: str
    caption: str
    summary: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380


@dataclass(frozen=True)
class Point:
    """A model in accuracy (per cent, with its standard deviation in points) and in speed or number of tokens, ``x``.

    Points of one name are of one colour. ``bar`` is how far the quartiles of ``x`` are below and above; the mark of an
    uncertain speed-up is hollow. More ``facts`` are shown on hovering.
    """

    name: str
    x: float
    accuracy: float = 0.0
    bar: tuple[float, float] = (0.0, 0.0)
    spread: float | None = None
    uncertain: bool = False
    facts: Sequence[str] = ()


def measured_point(
    name: str, timing: Mapping[str, Any], accuracy: float = 0.0, spread: float | None = None, *facts: str
) -> Point:
    """A model in accuracy and measured speed; both shares, not per cent."""
    spread = None if spread is None else 100 * spread
    return Point(name, timing["speedup"], 100 * accuracy, speed_bar(timing), spread, bool(timing["uncertain"]), facts)


def variant_point(name: str, found: Mapping[str, Any], timing: Mapping[str, Any], *facts: str) -> Point:
    """A variant of a study, with what it costs."""
    merges = [merges_text([merger]) for merger in found.get("mergers") or ()]
    cost = f"{gflops_text(found['flops'])} GFLOPs, {count_text(found['params'])} parameters"
    return measured_point(name, timing, found["metric_mean"], found.get("metric_sd"), *facts, *merges, cost)


def accuracy_against(
    points: Sequence[Point],
    plain: float,
    *,
    title: str = "Accuracy against measured speed",
    caption: str = f"{SPEED_CAPTION} {AXES_CAPTION}",
    metric: str = "test accuracy",
    axis: str = "times as fast as plain",
    across: str = "{:.2f} times as fast",
    lines: bool = False,
    ticks: bool = False,
    looks: Mapping[str, tuple[str, str]] | None = None,
    dashed: Sequence[str] = (),
) -> Chart:
    """A mark for each model, and a dotted line for the plain one, whose accuracy is in per cent.

    The vertical axis is of ``metric``, the horizontal one of ``axis``, with values written as ``across`` on hovering;
    it is logarithmic with a tick for each value where ``ticks`` are asked for. ``looks`` are colours, as charts have
    them, and symbols of plotly; by default those of known variants. Names that are ``dashed`` are no more than bounds.
    """
    names = list(dict.fromkeys(point.name for point in points))
    if looks is None:
        colours, symbols = chart_colours(names), chart_symbols(names)
        looks = {name: (colours[name], symbols[name]) for name in names}
    data: list[dict[str, Any]] = []
    for name in names:
        own = sorted((point for point in points if point.name == name), key=lambda point: point.x)
        colour, symbol = looks[name]
        mode = "lines" if name in dashed else "lines+markers" if lines and len(own) > 1 else "markers"
        data.append({
            "type": "scatter", "mode": mode, "name": escape(name),
            "x": [p.x for p in own], "y": [p.accuracy for p in own], "error_x": _bars(own, colour),
            "error_y": {**_BAR, "array": [p.spread or 0 for p in own], "color": colour,
                        "visible": any(p.spread for p in own)},
            "marker": {
                "color": colour, "size": 8 if ticks else 15 if symbol == "star" else 11,
                "line": {"width": 2, "color": colour},
                "symbol": [symbol + ("-open" if p.uncertain else "") for p in own],
            },
            "line": {"color": colour, "width": 1.5, "dash": "dash" if name in dashed else "solid"},
            "hovertext": [_hover(p, across, metric) for p in own], "hovertemplate": _HOVER,
        })  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": axis}},
        "yaxis": {"title": {"text": f"{metric}, %"}},
        "shapes": [_reference(x=(0, 1), y=(plain, plain), xref="paper", layer="below")],
    }
    if ticks:
        values = sorted({point.x for point in points})
        layout["xaxis"] |= {"type": "log", "tickvals": values, "ticktext": [f"{value:g}" for value in values]}
    words = "; ".join(f"{p.name}: {p.accuracy:.2f}% at {across.format(p.x)}" for p in points)
    height = 380 + 18 * max(0, len(names) - 4)  # a long legend takes no height from the axes
    return Chart(title, caption, f"{metric}, plain {plain:.2f}%. {words}.", data, layout, height)


@dataclass(frozen=True)
class Curve:
    """A metric over the epochs: the mean of several runs, and their lowest and highest."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    lowest: Sequence[float] = field(default_factory=list)
    highest: Sequence[float] = field(default_factory=list)


def curve(name: str, history: Sequence[Sequence[Mapping[str, Any]]]) -> Curve | None:
    """The curve of one variant over its seeds; ``None`` where no validation images were watched."""
    runs = [[row["val_metric"] for row in run] for run in history]
    columns = [[100 * value for value in column] for column in zip(*runs, strict=False) if None not in column]
    if not columns:
        return None
    epochs = [row["epoch"] for row in history[0][: len(columns)]]
    mean = [sum(values) / len(values) for values in columns]
    return Curve(name, epochs, mean, [min(values) for values in columns], [max(values) for values in columns])


def training_curves(
    curves: Sequence[Curve | None],
    *,
    title: str = "Training curves",
    metric: str = "validation accuracy",
    images: str = "On validation images, after each epoch.",
) -> Chart:
    """A line for each model; where there are several runs, a band from the lowest to the highest.

    ``images`` says what it was measured on, and when. Of a model that was not watched the curve is ``None``.

    Raises:
        ValueError: There are none.
    """
    known = [curve for curve in curves if curve is not None]
    if not known:
        raise ValueError("there were no validation images")
    names = list(dict.fromkeys(curve.name for curve in known))
    colours, symbols = chart_colours(names), chart_symbols(names)
    data: list[dict[str, Any]] = []
    bands = False
    for curve in known:
        colour, name = colours[curve.name], escape(curve.name)
        if list(curve.lowest) != list(curve.highest):
            bands = True
            data.append({
                "type": "scatter", "mode": "lines", "x": [*curve.epochs, *reversed(curve.epochs)],
                "y": [*curve.highest, *reversed(curve.lowest)], "fill": "toself", "fillcolor": faint(colour),
                "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "name": name, "legendgroup": name,
            })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "x": list(curve.epochs), "y": list(curve.values),
            "line": {"color": colour, "width": 2}, "legendgroup": name,
            "marker": {"color": colour, "size": 7, "symbol": symbols[curve.name]},
            "hovertext": [
                f"<b>{name}</b><br>epoch {epoch:g}: {value:.2f}%"
                for epoch, value in zip(curve.epochs, curve.values, strict=True)
            ], "hovertemplate": _HOVER,
        })  # fmt: skip
    longest = max((curve.epochs[-1] for curve in known if curve.epochs), default=0.0)
    ticks = {"dtick": 1} if 1 < longest <= _FEW else {}
    layout = {"xaxis": {"title": {"text": "epoch"}, **ticks}, "yaxis": {"title": {"text": f"{metric}, %"}}}
    words = "; ".join(f"{c.name}: from {c.values[0]:.1f} to {c.values[-1]:.1f}%" for c in known if c.values)
    band = " Lines are means, bands go from the lowest to the highest seed." if bands else ""
    caption = f"{images}{band} The vertical axis does not begin at 0."
    return Chart(title, caption, f"{metric} over the epochs. {words}.", data, layout)


def speed_rows(rows: Sequence[tuple[str, Point, float | None]], *, caption: str) -> Chart:
    """A bar for each measured setting: the speed-up, its quartiles, and what FLOPs predict.

    A row is what was measured, how fast it is (its accuracy is not shown), and the predicted speed-up.
    """
    merged, grey = chart_colours(["merged", "plain"]).values()
    labels = [escape(label).replace(", ", "<br>", 1) for label, _, _ in rows]
    points = [point for _, point, _ in rows]
    data: list[dict[str, Any]] = [{
        "type": "bar", "orientation": "h", "name": "measured", "y": labels, "x": [p.x for p in points],
        "marker": {"color": [faint(merged, 0.45) if p.uncertain else merged for p in points]},
        "error_x": _bars(points, grey), "hovertext": [_hover(p) for p in points], "hovertemplate": _HOVER,
    }]  # fmt: skip
    if any(predicted for _, _, predicted in rows):
        data.append({
            "type": "scatter", "mode": "markers", "name": "predicted by FLOPs", "y": labels,
            "x": [predicted for _, _, predicted in rows], "hovertemplate": "predicted %{x:.2f} times<extra></extra>",
            "marker": {"symbol": "line-ns-open", "size": 16, "color": grey, "line": {"width": 2}},
        })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "times as fast as plain"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "dtick": 1, "automargin": True, "showgrid": False},
        "shapes": [_reference(x=(1, 1), y=(0, 1), yref="paper", layer="above")],
        "bargap": 0.35,
    }
    words = "; ".join(f"{label}: {point.x:.2f} times" for label, point, _ in rows)
    height = 150 + 42 * len(rows)
    return Chart("Measured speed-up", caption, f"Speed of the merged model. {words}.", data, layout, height)


def stages(title: str, values: Mapping[str, Sequence[tuple[str, float, str]]], *, metric: str, caption: str) -> Chart:
    """Bars in groups: for each variant a bar in each stage, of a value in per cent, and what to show on hovering."""
    colours = chart_colours(values)
    data = [
        {
            "type": "bar", "name": escape(name), "x": [escape(stage) for stage, _, _ in bars],
            "y": [value for _, value, _ in bars], "marker": {"color": colours[name]},
            "hovertext": [f"<b>{escape(name)}</b>, {escape(stage)}<br>{escape(text)}" for stage, _, text in bars],
            "hovertemplate": _HOVER,
        }
        for name, bars in values.items()
    ]  # fmt: skip
    layout = {"barmode": "group", "yaxis": {"title": {"text": f"{metric}, %"}}, "bargap": 0.3}
    words = "; ".join(f"{name}: " + ", ".join(f"{s} {v:.2f}%" for s, v, _ in bars) for name, bars in values.items())
    return Chart(title, caption, f"{metric}. {words}.", data, layout)


def _bars(points: Sequence[Point], colour: str) -> dict[str, Any]:
    """Horizontal bars, from quartile to quartile."""
    below, above = zip(*(point.bar for point in points), strict=True)
    return {**_BAR, "symmetric": False, "array": above, "arrayminus": below, "color": colour}


def _reference(*, x: tuple[float, float], y: tuple[float, float], **where: str) -> dict[str, Any]:
    """A dotted line in the colour of the plain model."""
    line = {"color": chart_colours(["plain"])["plain"], "dash": "dot", "width": 1}
    return {"type": "line", "x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1], "line": line, **where}


def _hover(point: Point, across: str = "{:.2f} times as fast", metric: str | None = None) -> str:
    """What is shown on hovering; without a metric no accuracy."""
    low, high = point.x - point.bar[0], point.x + point.bar[1]
    quartiles = f" (quartiles {low:.2f} to {high:.2f})" if any(point.bar) else ""
    spread = "" if point.spread is None else f" ± {point.spread:.2f}"
    lines = [] if metric is None else [f"{metric}: {point.accuracy:.2f}{spread}%"]
    lines += [f"{across.format(point.x)}{quartiles}", *point.facts]
    return "<br>".join([f"<b>{escape(point.name)}</b>", *map(escape, lines)])
