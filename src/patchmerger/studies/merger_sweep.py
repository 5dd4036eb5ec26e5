"""Where to merge, and to how many tokens: a grid of mergers, each trained alike, against the plain model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchmerger.data import ImageSplits, read_images, split_images
from patchmerger.data.loading import DataLike, recorded_data, to_read
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.finished_work import FinishedWork
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.shared_work import SharedWork, shard_of
from patchmerger.runs.statistics import mean_sd
from patchmerger.studies.cells import PLAIN, Cell, check_cells, grid_cells
from patchmerger.studies.settings import SweepSettings
from patchmerger.studies.training_runs import (
    WORK,
    Run,
    Runs,
    check_resumed,
    check_reused,
    device_of,
    measure_speeds,
    study_folder,
    summary,
    taken_over,
    train_run,
)
from patchmerger.studies.variants import build_recipe
from patchmerger.training.devices import check_devices
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import Recipe

_SPEED = "speed"


def sweep(
    settings: SweepSettings = SweepSettings(),
    data: DataLike | None = None,
    *,
    shard: str | None = None,
    out: Path | None = None,
    reuse: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a merger for every block and number of tokens, and compare accuracy, cost and measured speed.

    The same call again resumes an interrupted sweep, and tries again what failed. Several processes share the work, on
    one machine or on several that see the same folder.

    Args:
        settings: What is swept.
        data: Images in place of those of the settings: a source, or a dataset of one's own, as in
            :func:`patchmerger.data.load_images`.
        shard: "1/2" trains the first of two parts, for machines that do not see one folder; the call without it makes
            the results once the folders are put together.
        out: The folder; runs/sweep-DATA-FINGERPRINT if not given.
        reuse: The folder of an earlier study: trainings of the same settings that are finished there are copied, not
            made again, so that a study can grow by cells and seeds.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being trained, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        TypeError: ``data`` is none of these; the message says what would do.
        ValueError: Cells that cannot be built, all of them by name, or data that cannot be trained on; before any
            training.
    """
    settings = replace(settings, data=recorded_data(data, settings.data)).resolved()
    folder = study_folder(settings, out, "sweep")
    known = folder.results
    if known is not None and not known["errors"]:
        return known

    check_devices(settings.training)
    images = read_images(to_read(data, settings.data), validation=settings.data.validation)
    splits = split_images(images, seed=0)
    settings.training.check(multi_label=splits.multi_label)
    plain = settings.plain_recipe(native_size(splits))
    cells = grid_cells(settings, settings.merge, plain)
    flops = check_cells(cells, plain, len(images.class_names))
    recipes = {PLAIN: plain} | {cell.name: replace(plain, merge=cell.merge) for cell in cells}
    units = [f"{name}/seed-{seed}" for seed in range(settings.seeds) for name in recipes]
    own = units if shard is None else units[shard_of(shard)]
    reused = FinishedWork(reuse, folder.path)
    check_reused(reused, recipes, settings.seeds, images)
    check_resumed(folder, recipes, settings.seeds, images)
    folder.begin()
    work = SharedWork(folder.path / WORK, units, lambda unit: (folder.path / unit / RESULTS_FILE).exists())
    if progress:
        print(f"{len(cells)} mergers and the plain model, {len(own)} runs in {folder.path}", file=sys.stderr)
    study = _Sweep(folder, settings, cells, recipes, flops, splits, work)
    for unit in work.take(own):
        name, seed = _parts(unit)
        try:
            of_seed = split_images(images, seed=seed)
            train_run(of_seed, recipes[name], folder.path / unit, seed=seed, reused=reused, progress=progress)
        except Exception as error:  # the others go on
            work.failed(unit, error)
            print(f"{unit} failed ({type(error).__name__}: {error}); the others go on", file=sys.stderr)

    if not all(work.settled(unit) or work.error(unit) for unit in units):
        return {"command": command, **study.results({})}
    with work.lock("results", timeout=-1):
        known = folder.results
        if known is not None and not known["errors"]:  # by another process meanwhile
            return known
        return folder.finish({"command": command, **study.results(study.speeds())})


def _parts(unit: str) -> tuple[str, int]:
    """The cell and the seed of a unit of work."""
    name, _, seed = unit.rpartition("/seed-")
    return name, int(seed)


@dataclass(frozen=True)
class _Sweep:
    """What is known of a sweep while it goes on."""

    folder: RunFolder
    settings: SweepSettings
    cells: Sequence[Cell]
    recipes: Mapping[str, Recipe]
    flops: Mapping[str, int]
    splits: ImageSplits
    work: SharedWork

    def speeds(self) -> dict[str, Any]:
        """Measured speed of each merged model against the plain one; what is measured is kept, cell by cell.

        Two at a time: compiling more models of one class in one process reaches torch's limit on recompilation.
        """
        speeds = {}
        for cell in self.cells:
            file = self.folder.path / _SPEED / f"{cell.name}.json"
            if not file.exists():
                classes = len(self.splits.class_names)
                models = {n: build_recipe(self.recipes[n], num_classes=classes) for n in (PLAIN, cell.name)}
                try:
                    measured = measure_speeds(
                        models, self.settings.training, rounds=self.settings.rounds, baseline=PLAIN
                    )
                except Exception as error:  # the others go on
                    self.work.failed(f"{_SPEED}/{cell.name}", error)
                    continue
                file.parent.mkdir(exist_ok=True)
                write_json(file, measured)
            speeds[cell.name] = read_json(file)
        return speeds

    def results(self, speeds: Mapping[str, Any]) -> dict[str, Any]:
        """What the runs that are done show."""
        runs: dict[str, dict[int, Run]] = {name: {} for name in self.recipes}
        for unit in self.work.units:
            if self.work.done(unit):
                name, seed = _parts(unit)
                path = self.folder.path / unit
                runs[name][seed] = Run(path, read_json(path / RESULTS_FILE))
        described = {
            cell.name: {
                "merge": to_json(cell.merge),
                "options": cell.options,
                "flops": self.flops[cell.name],
                **_summary(runs[cell.name], runs[PLAIN]),
                "speed": speeds.get(cell.name),
            }
            for cell in self.cells
        }
        unmeasured = [f"{_SPEED}/{cell.name}" for cell in self.cells if cell.name not in speeds]
        errors = {unit: self.work.error(unit) for unit in (*self.work.units, *unmeasured)}
        return {
            "study": "sweep",
            "settings": self.folder.settings,
            "model": to_json(self.recipes[PLAIN].model),
            "data": self.splits.description,
            "metric": "mAP" if self.splits.multi_label else "accuracy",
            "plain": {"flops": self.flops[PLAIN], **_summary(runs[PLAIN], None)},
            "cells": described,
            "errors": {unit: error["error"] for unit, error in errors.items() if error is not None},
            "missing": [unit for unit in self.work.units if not self.work.done(unit) and not self.work.error(unit)],
            "taken_over": taken_over(runs),
            "environment": environment(device_of(self.settings.training)),
            "folder": str(self.folder.path),
        }


def _summary(runs: Runs, baseline: Runs | None) -> dict[str, Any]:
    """Of a cell with runs what they gave; ``metric_mean`` is ``None`` for one without."""
    if not runs:
        return {"metrics": [], "metric_mean": None, "metric_sd": None, "difference": None, "merger": None}
    found = [run.results["merger"] for run in runs.values()]
    mean = {
        name: {
            key: mean_sd([of[name][key] for of in found])[0] if first is not None else None
            for key, first in values.items()
        }
        for name, values in found[0].items()
    }
    return {**summary(runs, baseline), "merger": mean}
