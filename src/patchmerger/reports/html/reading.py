"""Find saved results: in the folder of a run, in a JSON file, or in the files and folders of a folder of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchmerger.runs.files import read_json

RESULTS, SETTINGS = "results.json", "settings.json"
FILES = ("*.json", "*/export.json")
"""Results in a folder that are not those of a run; the second is the record in an OpenVINO folder."""


@dataclass(frozen=True)
class Source:
    """Results that were read from the folder of a run, or from a file."""

    path: Path
    results: dict[str, Any]


@dataclass(frozen=True)
class Unread:
    """A folder or file that is not shown, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_sources(paths: Sequence[str | Path]) -> tuple[list[Source], list[Unread]]:
    """Read results in folders of runs, in JSON files or folders that hold some of either, and say what is unread.

    Raises:
        FileNotFoundError: A path leads nowhere.
    """
    places = [Path(path).expanduser() for path in paths]
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"folders ({place}) does not exist")
    sources: list[Source] = []
    unread: list[Unread] = []
    for found in dict.fromkeys(file for place in places for file in _files(place)):
        outcome = _read(found)
        if isinstance(outcome, Source):
            sources.append(outcome)
        else:
            unread.append(outcome)
    return sources, unread


def _files(place: Path) -> Iterator[Path]:
    """The files of results that a path stands for; the folder itself where it has none."""
    if not place.is_dir():
        yield place
    elif (place / RESULTS).is_file() or (place / SETTINGS).is_file():
        yield place / RESULTS
    else:
        files = sorted(file for pattern in FILES for file in place.glob(pattern) if file.is_file())
        runs = sorted(file.parent for file in place.glob(f"*/{SETTINGS}"))
        runs += sorted(file.parent for file in place.glob(f"*/{RESULTS}") if file.parent not in runs)
        yield from files or ([] if runs else [place])
        yield from (run / RESULTS for run in runs)


def _read(file: Path) -> Source | Unread:
    path = file.parent if file.name == RESULTS else file
    if file.is_dir():
        return Unread(file, f"a folder of an unknown kind: it has no {RESULTS}, and no JSON files")
    if not file.is_file():
        return Unread(path, f"unfinished: it has no {RESULTS} yet")
    try:
        results = read_json(file)
    except (ValueError, OSError) as error:
        return Unread(path, " ".join(str(error).split()))
    if not isinstance(results, dict):
        return Unread(path, f"{file.name} holds no results of a command, but a {type(results).__name__}")
    return Source(path, results)
