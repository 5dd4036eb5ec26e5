"""The page: sections rendered with the templates, with all that they need inside of the one file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from patchmerger import __version__
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Unread, read_sources
from patchmerger.reports.parts.colours import dark_scheme, on_dark
from patchmerger.reports.parts.section import Section
from patchmerger.runs.files import check_out, write_text

TITLE = "PatchMerger report"


@dataclass(frozen=True)
class Report:
    """The file of a report, where the results are from that it shows, and what it does not show, with the reasons."""

    path: Path
    shown: tuple[str, ...]
    unread: tuple[Unread, ...]


def write_report(folders: Sequence[str | Path], out: Path, *, title: str = TITLE, overwrite: bool = False) -> Report:
    """Write saved results as one HTML file, which needs no network.

    Folders are those of runs, or hold some; files of results may stand among them.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        FileNotFoundError: A folder does not exist.
        ValueError: None of the folders holds results that can be shown.
    """
    check_out(out, overwrite=overwrite)
    sources, unread = read_sources(folders)
    sections = []
    for source in sources:
        section = section_of(source)
        if section is None:
            unread.append(Unread(source.path, "results of an unknown kind: of no command that a report shows"))
        else:
            sections.append(section)
    if not sections:
        raise ValueError(f"folders hold no results that can be shown: {'; '.join(map(str, unread))}")
    write_text(out, render(sections, unread, title=title))
    return Report(out, tuple(section.origin for section in sections), tuple(unread))


def render(sections: Sequence[Section], unread: Sequence[Unread] = (), *, title: str = TITLE) -> str:
    """The page as text, with what it does not show."""
    from plotly.offline import get_plotlyjs

    loader = PackageLoader("patchmerger.reports.html", "templates")
    templates = Environment(
        loader=loader, autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"emphasis": _emphasis, "swatch": _swatch}
    charts = {
        f"chart-{place}-{number}": {"data": list(chart.data), "layout": dict(chart.layout)}
        for place, section in enumerate(sections, start=1)
        for number, chart in enumerate(section.charts, start=1)
    }
    written = json.dumps(_finite(charts), ensure_ascii=False, allow_nan=False)
    page = templates.get_template("report.html.jinja")
    return page.render(
        title=title,
        version=__version__,
        sections=sections,
        unread=unread,
        charts=_in_script(written),
        dark=_in_script(json.dumps(dark_scheme(written))),
        style=Markup(loader.get_source(templates, "report.css")[0]),
        script=Markup(loader.get_source(templates, "report.js")[0]),
        plotly=Markup(get_plotlyjs()) if charts else "",
    )


def _in_script(written: str) -> Markup:
    """JSON that no browser takes for the end of its script."""
    return Markup(written.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _emphasis(text: str) -> Markup:
    """``**bold**`` as HTML, all else escaped."""
    parts = escape(text).split("**")
    return Markup("".join(f"<strong>{part}</strong>" if number % 2 else part for number, part in enumerate(parts)))


def _swatch(colour: str) -> str:
    """The colour of a mark in both schemes, as CSS."""
    light = colour.removeprefix("@")
    return f"--light:#{light};--dark:#{on_dark(light)}"


def _finite(value: Any) -> Any:
    """The same without numbers that JSON does not know: a diverged loss is a gap in its curve."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
