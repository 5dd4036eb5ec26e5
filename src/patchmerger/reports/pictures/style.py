"""How all pictures look: colours that people with colour blindness tell apart, sizes, titles, notes and legends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchmerger.reports.parts.numbers import speed_bar
from patchmerger.reports.pictures.fonts import no_news_of_glyphs, use_fonts_for
from patchmerger.runs.files import atomic_file

GREY = "#4d5562"
PANEL = (5.0, 3.7)
"""Width and height of one panel, in inches."""

_LOOK: Any = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11,
    "svg.hashsalt": "patchmerger", "svg.fonttype": "none", "text.parse_math": False,  # a name may hold a $
}  # fmt: skip

# Okabe and Ito's colours; a variant of a known name has the same one in every picture.
_VARIANTS = {
    "plain": GREY, "merged": "#d55e00", "located": "#009e73", "paper": "#cc79a7", "average": "#0072b2",
    "shallow": "#e69f00",
}  # fmt: skip
_FURTHER = ("#56b4e9", "#7a4b2a", "#8d5fbf", "#8a8f2a")
_MARKERS = {"plain": "*", "merged": "o", "located": "s", "paper": "D", "average": "^", "shallow": "v"}
_FURTHER_MARKERS = ("P", "X", "h", "<", ">")


def variant_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each variant; those that are ready-made always have the same."""
    further = cycle(_FURTHER)
    return {name: _VARIANTS.get(name) or next(further) for name in names}


def variant_markers(names: Iterable[str]) -> dict[str, str]:
    """A marker for each variant, so that no picture needs its colours to be read."""
    further = cycle(_FURTHER_MARKERS)
    return {name: _MARKERS.get(name) or next(further) for name in names}


def variant_lines(names: Iterable[str]) -> dict[str, str]:
    """A line style for each variant: one after the other for those that share a colour."""
    lines: dict[str, Iterator[str]] = defaultdict(lambda: cycle(("-", "--", "-.", ":")))
    return {name: next(lines[colour]) for name, colour in variant_colours(names).items()}


def ordered_colours(count: int) -> list[str]:
    """Colours from dark to light for an ordered quantity, such as numbers of tokens; none means a variant."""
    colours = mpl.colormaps["viridis"]
    return [mpl.colors.to_hex(colours(0.88 * place / max(count - 1, 1))) for place in range(count)]


@contextmanager
def picture(
    path: Path,
    *,
    columns: int,
    rows: int = 1,
    note: str,
    title: str | None = None,
    panel: tuple[float, float] | None = None,
    also_svg: bool = False,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with rows of panels that is written as a PNG, atomically, once it is drawn, and as an SVG for print.

    The note below says what a reader must know: what bars and bands are, which axes are cut. The title says what is
    shown, of what, where no shared legend does. ``panel`` is width and height of one panel, in inches, where it is no
    pair of axes: panels stand close together then.
    """
    width, height = panel or PANEL
    size = (columns * width, rows * height + 0.9)
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        pads = {"w_pad": 0.12, "h_pad": 0.06} if panel is None else {"w_pad": 0.04, "h_pad": 0.04}
        figure.get_layout_engine().set(**pads)  # type: ignore[union-attr]
        panels = figure.subplots(rows, columns, squeeze=False)
        if title is not None:
            figure.suptitle(_wrapped(title), x=0.01, ha="left", fontsize=9, color=GREY, wrap=True, parse_math=True)
        figure.supxlabel(_wrapped(note), x=0.01, ha="left", fontsize=8, color=GREY, wrap=True, parse_math=True)
        yield figure, list(panels.flat)
        path.parent.mkdir(parents=True, exist_ok=True)
        use_fonts_for(figure)
        for kind in ("png", "svg")[: 1 + also_svg]:
            with atomic_file(path.with_suffix(f".{kind}")) as partial, no_news_of_glyphs():
                # Without the date, the same results give the same file.
                figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _wrapped(text: str) -> str:
    """A text to be wrapped, which matplotlib reads for formulas even where ``text.parse_math`` is false."""
    return text.replace("$", r"\$")


def shared_legend(
    figure: Figure, handles: Sequence[Artist], labels: Sequence[str], *, title: str, columns: int = 7
) -> None:
    """One legend for all panels, outside of them, so that it covers no data; above it what was trained on what."""
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=min(columns, len(labels)), frameon=False, fontsize=9,
        title=title, title_fontsize=9, alignment="left", handlelength=3, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip
    legend.get_title().set_color(GREY)


def head(axes: Axes, title: str) -> None:
    """The title of a panel, and its grid."""
    axes.set_title(title, loc="left", weight="bold")
    axes.grid(alpha=0.25)


def limit_percent(axes: Axes) -> None:
    """From end to end at least one point, and nothing above 100%, with enough left that no marker is cut."""
    low, high = axes.get_ylim()
    wider = max(0.0, 1.0 - (high - low)) / 2
    axes.set_ylim(low - wider, min(high + wider, 101.0))


def error_bar(timing: Mapping[str, Any]) -> list[list[float]]:
    """The error bar of a speed-up, from quartile to quartile."""
    return [[end] for end in speed_bar(timing)]


def accuracy_line(axes: Axes, places: Sequence[float], rows: Sequence[Mapping[str, Any]], **looks: Any) -> None:
    """A line through accuracies, with their standard deviations where there are some."""
    sds = [100 * (row["sd"] or 0) for row in rows]
    values, bars = [100 * row["accuracy"] for row in rows], sds if any(sds) else None
    axes.errorbar(places, values, yerr=bars, ms=5, elinewidth=1, capsize=3, **looks)


def label_beside(
    axes: Axes, labels: Sequence[tuple[float, float, str]], others: Sequence[tuple[float, float]] = ()
) -> None:
    """Texts to the right of their points, moved up so that none covers another or a marker, and joined to its point.

    The limits of the axes must be set before. ``others`` are further markers that no text may cover.
    """
    across, size = 16.0, 11.0  # from a point to its text, and the size of a text or a marker, in 1/72 inch
    in_points = 72 / axes.figure.dpi * axes.transData.transform([(x, y) for x, y, *_ in (*labels, *others)] or [(0, 0)])
    covered = [(float(x), float(y)) for x, y in in_points]
    order = sorted(range(len(labels)), key=lambda number: labels[number][1])
    for number in order:
        x, y, text = labels[number]
        left, bottom = in_points[number]
        up = 0.0
        while any(abs(left + across - x) < size and abs(bottom + up - y) < size for x, y in covered):
            up += 1.0
        covered.append((left + across, bottom + up))
        axes.annotate(
            text, (x, y), xytext=(across, up), textcoords="offset points", ha="center", va="center", fontsize=9,
            weight="bold", color=GREY, zorder=6,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 1, "shrinkB": 3},
        )  # fmt: skip
