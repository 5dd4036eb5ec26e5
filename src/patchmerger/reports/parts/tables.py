"""Tables as plain data, which a page shows too; and on a terminal, where what does not fit follows below."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

_UNBOUNDED = 200


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, what it is sorted by if not by its text, and the colour of its variant."""

    text: str
    value: float | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """A table, which sorts by any of its columns where it is on a page.

    A terminal breaks the lines of its heads where they say so. On a page there is a note, and a ``folded`` one opens by
    a click. So many first columns as ``keys`` say which row it is; on a narrow terminal each part begins with them.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str | None = None
    folded: bool = False
    keys: int = 1

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it is of numbers."""
        return [any(row[place].value is not None for row in self.rows) for place in range(len(self.columns))]


def report_console() -> Console:
    """A console as wide as the terminal, or as what is written where it goes into a file or a pipe."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUNDED
    return console


def emphasised(text: str) -> str:
    """A sentence as rich prints it, with its ``**bold**`` parts in bold."""
    return re.sub(r"\*\*(.+?)\*\*", r"[bold]\1[/bold]", escape(text))


def print_notes(console: Console, *notes: str | None) -> None:
    """Print what a reader of a table must know, a line each; ``None`` is no note."""
    for note in notes:
        if note is not None:
            console.print(escape(note), soft_wrap=True)


def print_table(console: Console, table: Table, *, wrap: bool = False) -> None:
    """Print ``table``, folded where it is wider than the console, so that no number is cut.

    ``wrap`` breaks the lines of long texts instead.
    """
    numeric = table.numeric
    begins = [bool(row[0].text) for row in table.rows]
    ends = [begin and not all(begins) for begin in (*begins[1:], False)]  # a line between rows that belong together
    parts = [list(range(len(numeric)))] if wrap else _parts(table, console.width)
    for number, places in enumerate(parts):
        title = escape(table.caption) if table.caption and not number else None
        part = rich.table.Table(title=title, title_style="bold", box=box.SIMPLE_HEAD)
        for place in places:
            head, right = escape(table.columns[place]), numeric[place]
            part.add_column(head, justify="right" if right else "left", no_wrap=right or not wrap)
        for row, end in zip(table.rows, ends, strict=True):
            part.add_row(*(escape(row[place].text) for place in places), end_section=end)
        console.print(part)


def _parts(table: Table, width: int) -> Iterator[list[int]]:
    """The columns of each part: the keys, and as many of the others as fit."""
    keys = list(range(table.keys))
    part: list[int] = []
    for place in range(table.keys, len(table.columns)):
        if part and 1 + sum(_width(table, each) for each in (*keys, *part, place)) > width:
            yield [*keys, *part]
            part = []
        part.append(place)
    yield [*keys, *part]


def _width(table: Table, place: int) -> int:
    """That of the widest cell of a column, with the space between two columns."""
    texts = (table.columns[place], *(row[place].text for row in table.rows))
    return 3 + max(cell_len(line) for text in texts for line in text.split("\n"))
