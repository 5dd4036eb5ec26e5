"""The one progress bar: on standard error, and only where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Counts units of work that are done on a bar of rich, or on none where there is no terminal."""

    def __init__(self, bar: object, description: str, total: float) -> None:
        self._bar: object = bar
        self._task = None if bar is None else bar.add_task(description, total=total)  # type: ignore[attr-defined]

    def advance(self, units: float = 1.0) -> None:
        """So many units more are done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=units, refresh=True)  # type: ignore[attr-defined]

    def describe(self, description: str, completed: float | None = None) -> None:
        """What is done now and, where given, how many units are."""
        if self._bar is not None:
            self._bar.update(self._task, description=description, completed=completed, refresh=True)  # type: ignore[attr-defined]


@contextmanager
def progress_bar(description: str, total: float, *, shown: bool = True) -> Iterator[Progress]:
    """A bar for so many units of work, on a terminal and if it is to be shown; it goes away when it is done.

    It is drawn when work advances and never by a thread of its own, which a benchmark would time too.
    """
    if not (shown and sys.stderr.isatty()):
        yield Progress(None, description, total)
        return
    from rich import progress
    from rich.console import Console

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(20), progress.TaskProgressColumn())
    console = Console(stderr=True)
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, auto_refresh=False, transient=True
    ) as bar:
        yield Progress(bar, description, total)
