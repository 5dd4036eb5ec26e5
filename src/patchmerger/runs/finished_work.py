"""What another folder holds finished, which a study takes over in place of doing it again: known by what fixes it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from patchmerger.runs.files import atomic_file, full_disk_named, read_json, write_json
from patchmerger.runs.run_folder import (
    LOCK_FILE,
    RESULTS_FILE,
    SETTINGS_FILE,
    RunFolder,
    differences,
    fingerprint,
    recorded,
)
from patchmerger.runs.serialisation import to_json

TAKEN_FROM = "taken_from"
"""The key in a result that was taken over: the folder where it was made."""
FIXED_BY = "fixed_by"
"""The key in a result that is kept in a file: the fingerprint of all that it depends on."""
_NOT_COPIED = {SETTINGS_FILE, RESULTS_FILE, LOCK_FILE, "checkpoints"}


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run of an earlier study, its settings, and the content of its ``results.json``."""

    path: Path
    settings: dict[str, Any]
    results: dict[str, Any]


class FinishedWork:
    """Finished runs, and results in single files, below the folder of an earlier study.

    Args:
        folder: That folder; ``None`` holds nothing.
        out: The folder of the study that takes over, which must not lie in what is taken.

    Raises:
        ValueError: It is no folder, ``out`` lies in it, or nothing in it is finished.
    """

    def __init__(self, folder: Path | str | None, out: Path) -> None:
        self.folder = None if folder is None else Path(folder)
        self._runs: dict[tuple[str, str], FinishedRun] = {}
        self._files: dict[str, Path] = {}
        if self.folder is None:
            return
        if not self.folder.is_dir():
            raise ValueError(f"reuse ({folder}) is no folder: name the folder of an earlier study")
        for file in sorted(self.folder.rglob("*.json")):
            try:
                self._add(file)
            except (ValueError, OSError) as error:
                warnings.warn(f"reuse ({folder}): {error}; what is beside it is not taken over", stacklevel=4)
        self._refuse_inside(out.resolve())
        if not (self._runs or self._files):
            raise ValueError(f"reuse ({folder}) holds nothing finished: name the folder of an earlier study")

    def _add(self, file: Path) -> None:
        """Add a file to what is known, if it holds results, or says what a run beside it is."""
        content = read_json(file)
        if file.name == SETTINGS_FILE and (file.parent / RESULTS_FILE).is_file():
            kind, settings = recorded(file.parent)
            results = read_json(file.parent / RESULTS_FILE)
            if not isinstance(results, dict):
                raise ValueError(f"{file.parent / RESULTS_FILE} holds no object")
            self._runs[kind, fingerprint(settings)] = FinishedRun(file.parent, settings, results)
        elif file.name not in (SETTINGS_FILE, RESULTS_FILE) and isinstance(content, dict) and FIXED_BY in content:
            self._files[content[FIXED_BY]] = file

    def _refuse_inside(self, out: Path) -> None:
        """Refuse an ``out`` that is the folder itself, or in a run that is copied: beside the runs in it is allowed."""
        copied = {run.path.resolve() for run in self._runs.values()}
        if out == cast(Path, self.folder).resolve() or copied & {out, *out.parents}:
            raise ValueError(f"out ({out}) lies in what reuse ({self.folder}) takes over: name another folder")

    def run_of(self, settings: Any) -> FinishedRun | None:
        """The finished run with these settings; ``None`` where there is none."""
        return self._runs.get((type(settings).__name__, fingerprint(settings)))

    def refuse_if_useless(self, wanted: Sequence[Any]) -> None:
        """Refuse a folder that has no run with one of these settings.

        Raises:
            ValueError: So it is; with what differs least.
        """
        if self.folder is None or any(self.run_of(settings) is not None for settings in wanted):
            return
        kinds = {type(settings).__name__ for settings in wanted}
        nearest = [
            differences(to_json(settings), run.settings)
            for settings in wanted
            for (kind, _), run in self._runs.items()
            if kind in kinds
        ]
        least = f" ({min(nearest, key=len)})" if nearest else ""
        raise ValueError(f"reuse ({self.folder}) has no finished run of these settings{least}: leave it out")

    def refuse_other_study(self, settings: Mapping[str, Any], grid: Collection[str]) -> None:
        """Refuse the folder of a study that differs in more than in the ``grid``, the settings that list its cells.

        Raises:
            ValueError: So it is, it is the folder of no study, or none of its results can be taken over.
        """
        if self.folder is None:
            return
        if not (self.folder / SETTINGS_FILE).is_file():
            raise ValueError(f"reuse ({self.folder}) has no {SETTINGS_FILE}: name the folder of an earlier study")
        ours, theirs = to_json(settings), recorded(self.folder)[1]
        if listed := differences(*({k: v for k, v in each.items() if k not in grid} for each in (ours, theirs))):
            raise ValueError(
                f"reuse ({self.folder}) has results of other settings ({listed}): leave it out, or give the same"
            )
        if not set(ours["models"]) & set(theirs["models"]):
            raise ValueError(f"reuse ({self.folder}) has results of other models: leave it out, or name one of them")
        if not self._files:
            raise ValueError(f"reuse ({self.folder}) has no result that can be taken over: leave it out")

    def take_run(self, run: RunFolder) -> bool:
        """Copy the finished run with the settings of ``run`` into its folder, without checkpoints; is there one?"""
        found = self._runs.get((run.kind, run.fingerprint))
        if found is None:
            return False
        run.begin()
        with run.exclusive() as finished:
            if finished is None:
                with full_disk_named(run.path, any_write_error=True):
                    _copy(found.path, run.path)
                run.finish(_marked(found.results, found.path) | {"folder": str(run.path)})
        return True

    def take_file(self, fixed_by: str, file: Path, *, tensors: bool, **changed: Any) -> bool:
        """Copy the result that is fixed so to ``file``, with what is ``changed`` in it; is there one?

        Where it has ``tensors`` beside it, they are copied too; without them it is none.
        """
        found = self._files.get(fixed_by)
        if found is None or (tensors and not found.with_suffix(".safetensors").is_file()):
            return False
        if tensors:
            with atomic_file(file.with_suffix(".safetensors")) as partial:
                shutil.copyfile(found.with_suffix(".safetensors"), partial)
        write_json(file, _marked(read_json(found), found.parent) | changed)
        return True


def _copy(source: Path, target: Path) -> None:
    """Copy what is in a folder, but not its modes: an archive may be read-only."""
    for file in sorted(source.rglob("*")):
        place = file.relative_to(source)
        if file.is_file() and place.parts[0] not in _NOT_COPIED:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / place)


def _marked(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """The results, with the folder where they were made, also of what was taken over more than once."""
    return {**results, TAKEN_FROM: results.get(TAKEN_FROM) or str(path)}
