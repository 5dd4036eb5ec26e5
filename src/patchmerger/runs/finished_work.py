"""What another folder holds finished, which a study takes over in place of doing it again: known by what fixes it."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

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
_left_out = shutil.ignore_patterns(SETTINGS_FILE, RESULTS_FILE, LOCK_FILE, "checkpoints")


class FinishedWork:
    """Finished runs, and results in single files, below the folder of an earlier study.

    Args:
        folder: That folder; ``None`` holds nothing.
        out: The folder of the study that takes over, which must be another one.

    Raises:
        ValueError: It is no folder, it is ``out``, or nothing in it is finished.
    """

    def __init__(self, folder: Path | None, out: Path) -> None:
        self.folder = folder
        self._runs: dict[tuple[str, str], Path] = {}
        self._files: dict[str, Path] = {}
        if folder is None:
            return
        if not folder.is_dir():
            raise ValueError(f"reuse ({folder}) is no folder: name the folder of an earlier study")
        if folder.resolve() == out.resolve():
            raise ValueError(f"reuse ({folder}) is out itself: the same settings resume there; name another out")
        for file in sorted(folder.rglob("*.json")):
            if file.name == SETTINGS_FILE and (file.parent / RESULTS_FILE).is_file():
                kind, settings = recorded(file.parent)
                self._runs[kind, fingerprint(settings)] = file.parent
            elif isinstance(content := read_json(file), dict) and FIXED_BY in content:
                self._files[content[FIXED_BY]] = file
        if not (self._runs or self._files):
            raise ValueError(f"reuse ({folder}) holds nothing finished: name the folder of an earlier study")

    def check_runs(self, wanted: Iterable[Any]) -> None:
        """Refuse a folder that has no run with one of these settings: it would be of no use.

        Raises:
            ValueError: So it is; with what differs least.
        """
        if self.folder is None:
            return
        nearest: list[str] = []
        for settings in wanted:
            if (type(settings).__name__, fingerprint(settings)) in self._runs:
                return
            for path in self._runs.values():
                kind, theirs = recorded(path)
                if kind == type(settings).__name__:
                    nearest.append(differences(to_json(settings), theirs))
        least = f" ({min(nearest, key=len)})" if nearest else ""
        raise ValueError(f"reuse ({self.folder}) has no finished run of these settings{least}: leave it out")

    def check_study(self, settings: Mapping[str, Any], grid: Collection[str]) -> None:
        """Refuse the folder of a study that differs in more than in the ``grid``, the settings that list its cells.

        Raises:
            ValueError: So it is, or it is the folder of no study.
        """
        if self.folder is None:
            return
        if not (self.folder / SETTINGS_FILE).is_file():
            raise ValueError(f"reuse ({self.folder}) has no {SETTINGS_FILE}: name the folder of an earlier study")
        ours, theirs = (
            {key: value for key, value in which.items() if key not in grid}
            for which in (to_json(settings), recorded(self.folder)[1])
        )
        if listed := differences(ours, theirs):
            raise ValueError(
                f"reuse ({self.folder}) has results of other settings ({listed}): leave it out, or give the same"
            )

    def take_run(self, run: RunFolder) -> bool:
        """Copy the finished run with the settings of ``run`` into its folder, without checkpoints; is there one?"""
        found = self._runs.get((run.kind, run.fingerprint))
        if found is None:
            return False
        run.begin()
        with run.exclusive() as finished:
            if finished is None:
                with full_disk_named(run.path, any_write_error=True):  # shutil collects errors as text
                    shutil.copytree(found, run.path, ignore=_left_out, dirs_exist_ok=True)
                run.finish(self._marked(read_json(found / RESULTS_FILE), found) | {"folder": str(run.path)})
        return True

    def take_file(self, fixed_by: str, file: Path, **changed: Any) -> bool:
        """Copy the result that is fixed so, with its tensors, to ``file``, with what is ``changed``; is there one?"""
        found = self._files.get(fixed_by)
        if found is None:
            return False
        if (tensors := found.with_suffix(".safetensors")).exists():
            with atomic_file(file.with_suffix(".safetensors")) as partial:
                shutil.copyfile(tensors, partial)
        write_json(file, self._marked(read_json(found), found.parent) | changed)
        return True

    def _marked(self, results: dict[str, Any], path: Path) -> dict[str, Any]:
        """The results, with the folder where they were made, also of what was taken over more than once."""
        return {**results, TAKEN_FROM: results.get(TAKEN_FROM) or str(path)}
