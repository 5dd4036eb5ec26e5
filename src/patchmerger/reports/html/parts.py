"""What a report is made of, as plain data: figures, tables, charts, the diagram of a model, pictures, and sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

P = TypeVar("P")

_LACKING = (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError, StopIteration)


@dataclass(frozen=True)
class Figure:
    """A number that sums something up: "1.68×", "times as fast as plain"."""

    value: str
    label: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        value: What it is sorted by, where that is not its text.
        colour: Of the mark before it: that of the variant in the charts.
    """

    text: str
    value: float | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """A table that sorts by any of its columns; its first one names the rows. A folded one is opened by a click."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str | None = None
    folded: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it is of numbers."""
        return [any(row[place].value is not None for row in self.rows) for place in range(len(self.columns))]


@dataclass(frozen=True)
class Chart:
    """A chart of plotly.

    Attributes:
        title: What is drawn.
        caption: What bars and marks mean, and which axes are cut.
        summary: For who cannot see it: what it shows, in words.
        data: Traces, with colours as :mod:`~patchmerger.reports.html.colours` writes them.
        layout: Axes and reference lines.
    """

    title: str
    caption: str
    summary: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380


@dataclass(frozen=True)
class Segment:
    """Blocks in a row that as many tokens enter.

    Attributes:
        first: The first block, counted from 1.
        last: The last one; ``None`` for "and all later ones", where the depth is not known.
        tokens: How many enter each.
        merges_to: Tokens that leave the last of them, where it merges.
    """

    first: int
    last: int | None
    tokens: int
    merges_to: int | None = None


@dataclass(frozen=True)
class Diagram:
    """A model block by block, with the tokens that enter each, and where it merges."""

    title: str
    segments: Sequence[Segment]
    caption: str

    @property
    def most(self) -> int:
        """Tokens that enter the widest block."""
        return max(segment.tokens for segment in self.segments)


@dataclass(frozen=True)
class Picture:
    """An image file, inside of the page.

    Attributes:
        source: A data URI.
        text: What it shows, in words.
    """

    source: str
    text: str


@dataclass
class Section:
    """What a report says of the results of one command.

    Attributes:
        kind: The command.
        title: What was done on what.
        origin: The folder or file.
        verdict: One sentence with its numbers; ``**bold**`` where it matters.
        details: Settings, versions and the like, folded away: by title, then by name.
        command: The command line that asked for it.
        missing: What is left out, and why.
    """

    kind: str
    origin: str
    title: str = ""
    verdict: str = ""
    remarks: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    diagrams: list[Diagram] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    details: dict[str, dict[str, str]] = field(default_factory=dict)
    command: str | None = None
    missing: list[str] = field(default_factory=list)

    def attempt(self, what: str, make: Callable[[], P], default: P) -> P:
        """What ``make`` gives; where the results lack what it needs, ``default``, and ``what`` is named as missing."""
        try:
            return make()
        except _LACKING as error:
            self.missing.append(f"{what} ({_reason(error)})")
            return default


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the results have no {error.args[0]!r}"
    if isinstance(error, StopIteration):
        return "the results do not have it"
    return "the results are of another form" + (f": {error}" if isinstance(error, ValueError) and str(error) else "")
