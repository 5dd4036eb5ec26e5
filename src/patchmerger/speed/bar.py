"""The progress bar of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Report:
    """Says what is being measured and how far it is; silent where there is no terminal.

    Args:
        bar: A ``rich.progress.Progress``, or ``None``.
        rows: Rows to measure.
    """

    def __init__(self, bar: Any, rows: int) -> None:
        self.bar = bar
        self.begun = -1
        self.task = None if bar is None else bar.add_task("", total=max(1, rows))

    def begin(self, what: str, *, counts: bool = True) -> None:
        """A row begins; or, where it does not count as one, what comes before the rows."""
        self.begun += counts
        self._show(max(0, self.begun), description=what)

    def step(self, done: int, rounds: int) -> None:
        """A round of the row is done."""
        self._show(self.begun + done / rounds)

    def _show(self, completed: float, **changes: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=completed, refresh=True, **changes)


@contextmanager
def progress_bar(rows: int) -> Iterator[Report]:
    """A bar over ``rows`` rows on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield Report(None, rows)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    # Refreshed between rounds only: a thread that draws would be timed too.
    columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    with Progress(*columns, text, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        yield Report(bar, rows)
