"""Units of work that several processes share in one folder, without doing one twice or losing one that was killed."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from patchmerger.runs.files import read_json, write_json


class SharedWork:
    """Units of work, such as "after-2-tokens-8/seed-0", which processes of one command take one by one.

    Each unit has a lock that the operating system holds for the process that works on it, and gives back when that
    process ends in whatever way: a lock file that was left behind locks nothing. A unit that fails leaves its error,
    and is tried again by a process that starts later.

    ``folder``, which is made, keeps locks and errors; ``done`` tells whether a unit is, from what is on disk.
    """

    def __init__(self, folder: Path, units: Sequence[str], done: Callable[[str], bool]) -> None:
        self.folder = folder
        self.units = list(units)
        self.done = done
        self._started = time.time()

    def take(self, units: Sequence[str] | None = None, *, poll_seconds: float = 1.0) -> Iterator[str]:
        """Yield one unit after the other, locked while it is worked on, until all are done or have failed.

        Those that another process works on are waited for: it could be killed, and then they are taken over.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        pending = list(self.units if units is None else units)
        said = False
        while pending:
            held = []
            for unit in pending:
                if self.settled(unit):
                    continue
                try:
                    with self.lock(unit):
                        if not self.settled(unit):
                            yield unit
                except Timeout:
                    held.append(unit)
            pending = [unit for unit in held if not self.settled(unit)]  # others end while this pass goes on
            if pending:
                if not said:
                    print(f"waiting for {', '.join(pending)}: another process is at it", file=sys.stderr)
                    said = True
                time.sleep(poll_seconds)

    def lock(self, unit: str, *, timeout: float = 0) -> FileLock:
        """The lock of a unit, for a ``with`` statement; ``Timeout`` is raised after so many seconds, never for −1."""
        return FileLock(self._file(unit, "lock"), timeout=timeout)

    def settled(self, unit: str) -> bool:
        """Whether nothing is left to do: the unit is done, or it has failed since this process began."""
        if self.done(unit):
            return True
        error = self.error(unit)
        return error is not None and error["at"] >= self._started

    def failed(self, unit: str, error: Exception) -> None:
        """Keep the error of a unit; the full traceback too."""
        text = f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        write_json(self._file(unit, "error.json"), {"error": text, "at": time.time(), "traceback": trace})

    def error(self, unit: str) -> dict[str, Any] | None:
        """The error that a unit was left with; ``None`` for one that is done or has not failed."""
        file = self._file(unit, "error.json")
        if self.done(unit) or not file.exists():
            return None
        content: dict[str, Any] = read_json(file)
        return content

    def _file(self, unit: str, ending: str) -> Path:
        return self.folder / f"{unit.replace('/', '_')}.{ending}"


def shard_of(shard: str) -> slice:
    """What takes one of several shards out of a list: of "2/8", the second of eight, every eighth item from the second.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard ({shard!r}) must be i/n with i from 1 to n: 2/8, say, is the second of eight")
    return slice(int(match[1]) - 1, None, int(match[2]))
