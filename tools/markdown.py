"""Tables in Markdown, and the command line that the tools which make a page have in common."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from pathlib import Path

from patchmerger.reports.parts.tables import Table


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] | None = None) -> str:
    """A table in Markdown.

    Args:
        head: The heads of its columns.
        rows: The cells of each row.
        numbers: Which columns stand to the right; by default all but the first.
    """
    right = range(1, len(head)) if numbers is None else numbers
    line = ["---:" if place in right else "---" for place in range(len(head))]
    cells = [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in (head, line, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def shown_table(table: Table) -> str:
    """A table of a report in Markdown."""
    numbers = [place for place, numeric in enumerate(table.numeric) if numeric]
    return markdown_table(table.columns, [[cell.text for cell in row] for row in table.rows], numbers)


def given_paths(arguments: Sequence[str] | None, *defaults: Path) -> tuple[Path, ...]:
    """The paths that a page is made of and written to: those on the command line, then the defaults."""
    given = [Path(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    return (*given, *defaults[len(given) :])
