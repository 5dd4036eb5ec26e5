"""Tables on a terminal of any width: what does not fit beside the rest follows below it, and no number is cut."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

_UNBOUNDED = 200


def report_console() -> Console:
    """A console as wide as the terminal, or as what is written where it goes into a file or a pipe."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBOUNDED
    return console


def new_table(keys: Sequence[str], numbers: Sequence[str], *, title: str | None = None) -> Table:
    """A table without rows.

    Args:
        keys: Heads of its first columns, which say which row it is.
        numbers: Heads of the others, which stand to the right.
        title: Above it; what it names is shown as it is.
    """
    table = Table(title=None if title is None else escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    for key in keys:
        table.add_column(key, no_wrap=True)
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def print_notes(console: Console, *notes: str | None) -> None:
    """Print what a reader of the table must know, a line each; ``None`` is no note."""
    for note in notes:
        if note is not None:
            console.print(escape(note), soft_wrap=True)


def print_table(console: Console, table: Table, *, keys: int = 1) -> None:
    """Print ``table``, folded where it is wider than the console: each part begins with the first columns.

    Args:
        console: Where to.
        table: Its columns must not wrap.
        keys: How many of its first columns say which row it is.
    """
    for number, columns in enumerate(_parts(table, console.width, keys)):
        part = Table(box=table.box, title=None if number else table.title, title_style=table.title_style)
        for column in columns:
            part.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
        for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
            part.add_row(*cells, end_section=row.end_section)
        console.print(part)


def _parts(table: Table, width: int, keys: int) -> Iterator[list[Column]]:
    """The columns of each part: the keys, and as many of the others as fit."""
    first, others = table.columns[:keys], table.columns[keys:]
    part: list[Column] = []
    for column in others:
        if part and 1 + sum(_width(each) for each in (*first, *part, column)) > width:
            yield [*first, *part]
            part = []
        part.append(column)
    yield [*first, *part]


def _width(column: Column) -> int:
    """Of its widest cell, with the space between two columns."""
    cells = (Text.from_markup(str(cell)).plain for cell in (column.header, *column.cells))
    return 3 + max(cell_len(line) for cell in cells for line in cell.split("\n"))
