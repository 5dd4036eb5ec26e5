"""The charts of a report, in plotly's form: accuracy against speed, curves of training, speed-ups row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import cycle
from typing import Any

from patchmerger.reports.html.colours import chart_colours, chart_symbols, faint
from patchmerger.reports.html.parts import Chart

_FEW = 10
_SYMBOLS = ("x", "square", "diamond", "triangle-down", "triangle-up", "circle", "cross", "star", "hexagon", "bowtie")
_HOVER = "%{hovertext}<extra></extra>"


@dataclass(frozen=True)
class Point:
    """A model in accuracy and speed.

    Attributes:
        name: The variant.
        speedup: Times as fast as the plain model.
        accuracy: In per cent.
        speed_bar: How far the quartiles of the speed-up are below and above.
        spread: Standard deviation of the accuracy, in points.
        uncertain: Whether the speed-up is uncertain: the mark is hollow.
        facts: More lines to show on hovering.
    """

    name: str
    speedup: float
    accuracy: float
    speed_bar: tuple[float, float] = (0.0, 0.0)
    spread: float | None = None
    uncertain: bool = False
    facts: Sequence[str] = ()


@dataclass(frozen=True)
class Curve:
    """A metric over the epochs: the mean of several runs, and their lowest and highest."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    lowest: Sequence[float] = field(default_factory=list)
    highest: Sequence[float] = field(default_factory=list)


def accuracy_against_speed(
    points: Sequence[Point],
    plain: Point | None,
    *,
    metric: str,
    caption: str,
    connect: bool = False,
    unit: str = "times as fast",
) -> Chart:
    """A mark for each model; the plain one is the reference: a star at 1, and a dashed line.

    Args:
        points: The models; those of one name are of one colour, and connected if asked for.
        plain: The plain model.
        metric: What the vertical axis is of.
        caption: What bars mean, in words.
        connect: Draw a line through the points of a name.
        unit: What the horizontal axis is of: of :attr:`Point.speedup`.
    """
    every = ([] if plain is None else [plain]) + list(points)
    names = list(dict.fromkeys(point.name for point in every))
    colours, symbols = chart_colours(names), chart_symbols(names)
    data = []
    for name in names:
        own = sorted((point for point in every if point.name == name), key=lambda point: point.speedup)
        data.append({
            "type": "scatter", "mode": "lines+markers" if connect and len(own) > 1 else "markers", "name": escape(name),
            "x": [p.speedup for p in own], "y": [p.accuracy for p in own],
            "error_x": {
                "type": "data", "symmetric": False, "array": [p.speed_bar[1] for p in own],
                "arrayminus": [p.speed_bar[0] for p in own], "color": colours[name], "thickness": 1.2, "width": 4,
            },
            "error_y": {
                "type": "data", "array": [p.spread or 0 for p in own], "color": colours[name], "thickness": 1.2,
                "width": 4, "visible": any(p.spread for p in own),
            },
            "marker": {
                "color": colours[name], "size": 15 if symbols[name] == "star" else 11,
                "symbol": [symbols[name] + ("-open" if p.uncertain else "") for p in own],
                "line": {"width": 2, "color": colours[name]},
            },
            "line": {"color": colours[name], "width": 1.5},
            "hovertext": [_hover(p, metric, unit) for p in own], "hovertemplate": _HOVER,
        })  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": f"{unit} {'than' if 'fewer' in unit else 'as'} plain"}},
        "yaxis": {"title": {"text": f"{metric}, %"}},
    }
    if plain is not None:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": plain.accuracy, "y1": plain.accuracy}
        layout["shapes"] = [
            {**line, "layer": "below", "line": {"color": colours[plain.name], "dash": "dot", "width": 1}}
        ]
    words = "; ".join(f"{p.name}: {p.accuracy:.2f}% at {p.speedup:.2f} times" for p in every)
    height = 380 + 18 * max(0, len(names) - 4)  # a long legend takes no height from the axes
    return Chart("Accuracy against measured speed", caption, f"{metric} against speed. {words}.", data, layout, height)


@dataclass(frozen=True)
class TokenPoint:
    """A model in accuracy and number of tokens.

    Attributes:
        num_tokens: So many tokens.
        accuracy: In per cent.
        spread: Standard deviation of the accuracy, in points.
        facts: More lines to show on hovering.
    """

    num_tokens: int
    accuracy: float
    spread: float | None = None
    facts: Sequence[str] = ()


def accuracy_against_tokens(
    title: str,
    lines: Mapping[str, Sequence[TokenPoint]],
    plain: float,
    *,
    colours: Mapping[str, str],
    dashed: Sequence[str] = (),
    metric: str,
    axis: str,
    caption: str,
) -> Chart:
    """A line for each method over the number of tokens, with the plain model as a dotted line.

    Args:
        title: What is drawn.
        lines: The points of each method, by their number of tokens.
        plain: Accuracy of the plain model, in per cent.
        colours: Of each method, as "#d55e00".
        dashed: Methods that are no more than bounds.
        metric: What the vertical axis is of.
        axis: What the horizontal one is of.
        caption: What bars mean, in words.
    """
    data: list[dict[str, Any]] = []
    for (name, points), symbol in zip(lines.items(), cycle(_SYMBOLS), strict=False):
        colour = "@" + colours[name].removeprefix("#").lower()
        hover = [
            "<br>".join([
                f"<b>{escape(name)}</b>", f"{metric}: {p.accuracy:.2f}{_spread(p.spread)}%", f"{p.num_tokens} tokens",
                *map(escape, p.facts),
            ])
            for p in points
        ]  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines" if name in dashed else "lines+markers", "name": escape(name),
            "x": [p.num_tokens for p in points], "y": [p.accuracy for p in points],
            "error_y": {
                "type": "data", "array": [p.spread or 0 for p in points], "color": colour, "thickness": 1.2, "width": 4,
                "visible": any(p.spread for p in points),
            },
            "line": {"color": colour, "width": 1.5, "dash": "dash" if name in dashed else "solid"},
            "marker": {"color": colour, "size": 9, "symbol": symbol}, "hovertext": hover, "hovertemplate": _HOVER,
        })  # fmt: skip
    ticks = sorted({p.num_tokens for points in lines.values() for p in points})
    grey = chart_colours(["plain"])["plain"]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": plain, "y1": plain, "layer": "below"}
    layout = {
        "xaxis": {
            "title": {"text": axis}, "type": "log", "tickvals": ticks, "ticktext": [str(n) for n in ticks],
        },
        "yaxis": {"title": {"text": f"{metric}, %"}},
        "shapes": [{**line, "line": {"color": grey, "dash": "dot", "width": 1}}],
    }  # fmt: skip
    words = "; ".join(
        f"{name}: " + ", ".join(f"{p.accuracy:.1f}% at {p.num_tokens}" for p in points)
        for name, points in lines.items()
    )
    return Chart(
        title, caption, f"{metric} by tokens, plain {plain:.1f}%. {words}.", data, layout, 340 + 20 * len(lines)
    )


def training_curves(title: str, curves: Sequence[Curve], *, metric: str, caption: str) -> Chart:
    """A line for each model; where there are several runs, a band from the lowest to the highest."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    colours, symbols = chart_colours(names), chart_symbols(names)
    data: list[dict[str, Any]] = []
    for curve in curves:
        colour = colours[curve.name]
        if curve.lowest and curve.highest and list(curve.lowest) != list(curve.highest):
            epochs = [*curve.epochs, *reversed(curve.epochs)]
            data.append({
                "type": "scatter", "mode": "lines", "x": epochs, "y": [*curve.highest, *reversed(curve.lowest)],
                "fill": "toself", "fillcolor": faint(colour), "line": {"width": 0}, "hoverinfo": "skip",
                "showlegend": False, "name": escape(curve.name), "legendgroup": escape(curve.name),
            })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": escape(curve.name), "x": list(curve.epochs),
            "y": list(curve.values), "line": {"color": colour, "width": 2}, "legendgroup": escape(curve.name),
            "marker": {"color": colour, "size": 7, "symbol": symbols[curve.name]},
            "hovertext": [
                f"<b>{escape(curve.name)}</b><br>epoch {epoch:g}: {value:.2f}%"
                for epoch, value in zip(curve.epochs, curve.values, strict=True)
            ], "hovertemplate": _HOVER,
        })  # fmt: skip
    whole = max((curve.epochs[-1] for curve in curves if curve.epochs), default=0.0)
    ticks = {"dtick": 1} if 1 < whole <= _FEW else {}
    layout = {"xaxis": {"title": {"text": "epoch"}, **ticks}, "yaxis": {"title": {"text": f"{metric}, %"}}}
    words = "; ".join(f"{c.name}: from {c.values[0]:.1f} to {c.values[-1]:.1f}%" for c in curves if c.values)
    return Chart(title, caption, f"{metric} over the epochs. {words}.", data, layout)


def speed_rows(rows: Sequence[tuple[str, Point, float | None]], *, caption: str) -> Chart:
    """A bar for each measured setting: the speed-up, its quartiles, and what FLOPs predict.

    Args:
        rows: What was measured, how fast it is (its accuracy is not shown), and the predicted speed-up.
        caption: What bars mean, in words.
    """
    merged = chart_colours(["merged"])["merged"]
    grey = chart_colours(["plain"])["plain"]
    labels = [escape(label).replace(", ", "<br>", 1) for label, _, _ in rows]
    points = [point for _, point, _ in rows]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "orientation": "h", "name": "measured", "y": labels, "x": [p.speedup for p in points],
            "marker": {"color": [faint(merged, 0.45) if p.uncertain else merged for p in points]},
            "error_x": {
                "type": "data", "symmetric": False, "array": [p.speed_bar[1] for p in points],
                "arrayminus": [p.speed_bar[0] for p in points], "thickness": 1.2, "width": 4, "color": grey,
            },
            "hovertext": [_hover(p, None) for p in points], "hovertemplate": _HOVER,
        },
        {
            "type": "scatter", "mode": "markers", "name": "predicted by FLOPs", "y": labels,
            "x": [predicted for _, _, predicted in rows], "hovertemplate": "predicted %{x:.2f} times<extra></extra>",
            "marker": {"symbol": "line-ns-open", "size": 16, "color": grey, "line": {"width": 2}},
        },
    ]  # fmt: skip
    if not any(predicted for _, _, predicted in rows):
        del data[1]
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "layer": "above"}
    layout = {
        "xaxis": {"title": {"text": "times as fast as plain"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "dtick": 1, "automargin": True, "showgrid": False},
        "shapes": [{**line, "line": {"color": grey, "dash": "dot", "width": 1}}],
        "bargap": 0.35,
    }
    words = "; ".join(f"{label}: {point.speedup:.2f} times" for label, point, _ in rows)
    return Chart(
        "Measured speed-up", caption, f"Speed of the merged model. {words}.", data, layout, 150 + 42 * len(rows)
    )


def stages(title: str, values: Mapping[str, Sequence[tuple[str, float, str]]], *, metric: str, caption: str) -> Chart:
    """Bars in groups: for each variant a bar in each stage.

    Args:
        title: What is drawn.
        values: For each variant stage, value in per cent, and what to show on hovering.
        metric: What the vertical axis is of.
        caption: What bars mean, in words.
    """
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


def _hover(point: Point, metric: str | None, unit: str = "times as fast") -> str:
    low, high = point.speedup - point.speed_bar[0], point.speedup + point.speed_bar[1]
    quartiles = f" (quartiles {low:.2f} to {high:.2f})" if any(point.speed_bar) else ""
    lines = [] if metric is None else [f"{metric}: {point.accuracy:.2f}{_spread(point.spread)}%"]
    lines += [f"{point.speedup:.2f} {unit}{quartiles}", *point.facts]
    return "<br>".join([f"<b>{escape(point.name)}</b>", *map(escape, lines)])


def _spread(spread: float | None) -> str:
    return "" if spread is None else f" ± {spread:.2f}"
