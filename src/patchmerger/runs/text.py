"""Tables, numbers and lists as plain text, for objects that are printed and for messages."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], *, with_total: bool = False) -> str:
    """Columns as wide as they need: the first one to the left, the others to the right, under a line.

    The first row is the header; with a total, there is a line above the last row too.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    ending = [rule, lines.pop()] if with_total else []
    return "\n".join([lines[0], rule, *lines[1:], *ending])


def significant(value: float, digits: int = 3) -> str:
    """A number to so many digits or, from there on, to its units; never with an exponent: 0.752, 35.1, 1,774."""
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def some_of(names: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first names, and how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
