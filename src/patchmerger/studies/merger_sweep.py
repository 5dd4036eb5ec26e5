"""Where to merge, and to how many tokens: a grid of mergers, each trained alike, against the plain model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchmerger.data import (
    Augmentation,
    DataSettings,
    ImageDataset,
    ImageSplits,
    default_augmentation,
    read_images,
    split_images,
)
from patchmerger.mechanism.options import Norm
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.shared_work import SharedWork, shard_of
from patchmerger.runs.statistics import mean_sd
from patchmerger.studies.cells import PLAIN, Cell, check_cells, grid
from patchmerger.studies.training_runs import Run, device_of, measure_speeds, summary, train_run
from patchmerger.studies.variants import build_recipe
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import Recipe, TrainingSettings

_WORK = ".work"
_SPEED = "speed"


def sweep(
    *,
    after: list[int] | None = None,
    num_tokens: list[int] = [4, 8, 16],  # noqa: B006 - read, never changed
    norm: list[Norm] = [],  # noqa: B006
    scale: list[float] = [],  # noqa: B006
    logit_std: list[float] = [],  # noqa: B006
    further: dict[str, MergeSettings] = {},  # noqa: B006
    data: DataSettings = DataSettings(),
    model: ModelSettings = ModelSettings(),
    merge: MergeSettings = MergeSettings(),
    augmentation: Augmentation | None = None,
    training: TrainingSettings = TrainingSettings(),
    seeds: int = 1,
    rounds: int = 15,
    shard: str | None = None,
    out: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a merger for every place and number of tokens, and compare accuracy, cost and measured speed.

    The same command again goes on where it was interrupted, and tries again what failed. Several processes of the same
    command share the work, on one machine or on several that see the same folder. With no options: nine mergers and
    the plain model on the built-in digits, some ten minutes on two cores.

    Args:
        after: Blocks to merge after, counted from 1; a quarter, half and three quarters of the depth if not given.
        num_tokens: Numbers of tokens that go on, M.
        norm: Where to normalise, "scores", "both" or "none": the grid is trained with each; as in merge if not given.
        scale: Factors on the scores, likewise.
        logit_std: Standard deviations of the scores at the start, likewise.
        further: Mergers outside the grid, by name, such as two of them: {two: {after: [2, 4], num_tokens: [16, 8]}}.
        data: The images.
        model: The plain Vision Transformer.
        merge: What the grid does not vary of the merger: prefix, preset, ...
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How each model is trained, on one device.
        seeds: How often each is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which a merged model and the plain one take turns.
        shard: "1/2" trains the first of two parts, for machines that do not see one folder; the command without it
            makes the table once the folders are put together.
        out: The folder; runs/sweep-DATA-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being trained, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Cells that cannot be built, all of them by name, or settings or data that cannot be trained with;
            before any training.
    """
    if seeds < 1:
        raise ValueError(f"seeds ({seeds}) must be at least 1")
    if rounds < 1:
        raise ValueError(f"rounds ({rounds}) must be at least 1")
    if (training.devices, training.num_nodes) != (1, 1):
        raise ValueError(
            f"training.devices ({training.devices}) and training.num_nodes ({training.num_nodes}) must be 1: a sweep "
            "uses several devices by a process for each (CUDA_VISIBLE_DEVICES), which share the cells"
        )
    augmentation = augmentation or default_augmentation(data.source)
    settings: dict[str, Any] = {
        "after": after, "num_tokens": num_tokens, "norm": norm, "scale": scale, "logit_std": logit_std,
        "further": further, "data": data, "model": model, "merge": merge, "augmentation": augmentation,
        "training": training, "seeds": seeds, "rounds": rounds,
    }  # fmt: skip
    folder = RunFolder(out or default_folder("sweep", data.source, settings), settings)
    if folder.results is not None and not folder.results["errors"]:
        return folder.results

    images = read_images(data)
    splits = split_images(images, seed=0)
    model = model.resolve(native_size(splits))
    training.check(multi_label=splits.multi_label)
    cells = grid(
        merge, after=_places(model) if after is None else after, num_tokens=num_tokens, norm=norm, scale=scale,
        logit_std=logit_std, further=further,
    )  # fmt: skip
    flops = check_cells(cells, model, len(images.class_names))
    plain = Recipe(data, model, None, augmentation=augmentation, training=training)
    recipes = {PLAIN: plain} | {cell.name: replace(plain, merge=cell.merge) for cell in cells}
    units = [f"{name}/seed-{seed}" for seed in range(seeds) for name in recipes]
    own = units if shard is None else shard_of(units, shard)
    folder.begin()
    work = SharedWork(folder.path / _WORK, units, lambda unit: (folder.path / unit / RESULTS_FILE).exists())
    if progress:
        print(f"{len(cells)} mergers and the plain model, {len(own)} runs in {folder.path}", file=sys.stderr)
    _train(work, own, images, recipes, folder.path, progress)

    if all(work.settled(unit) or work.error(unit) for unit in units):
        with work.lock("results", timeout=-1):
            finished = folder.results
            if finished is not None and not finished["errors"]:  # by another process meanwhile
                return finished
            speeds = _speeds(cells, recipes, training, rounds, folder.path, len(images.class_names), work)
            results = _results(folder, cells, flops, splits, speeds, work, training, command)
            folder.finish(results)
            return results
    return _results(folder, cells, flops, splits, {}, work, training, command)


def _places(model: ModelSettings) -> list[int]:
    """A quarter, half and three quarters of the depth."""
    with torch.device("meta"):
        depth = len(build_model(replace(model, pretrained=False), num_classes=0).blocks)  # type: ignore[arg-type]
    return sorted({max(1, depth * quarters // 4) for quarters in (1, 2, 3)} & set(range(1, depth)))


def _train(
    work: SharedWork,
    units: Sequence[str],
    images: ImageDataset,
    recipes: dict[str, Recipe],
    path: Path,
    progress: bool,
) -> None:
    """Train what no other process trains; a unit that fails leaves its error, and the others go on."""
    splits: tuple[int, ImageSplits] | None = None
    for unit in work.take(units):
        name, _, seed_text = unit.rpartition("/seed-")
        seed = int(seed_text)
        try:
            if splits is None or splits[0] != seed:
                splits = seed, split_images(images, seed=seed)
            train_run(splits[1], recipes[name], path / unit, seed=seed, progress=progress)
        except Exception as error:
            work.failed(unit, error)
            print(f"{unit} failed ({type(error).__name__}: {error}); the others go on", file=sys.stderr)


def _speeds(
    cells: Sequence[Cell],
    recipes: dict[str, Recipe],
    training: TrainingSettings,
    rounds: int,
    path: Path,
    num_classes: int,
    work: SharedWork,
) -> dict[str, Any]:
    """Measured speed of each merged model against the plain one; what is measured is kept, cell by cell.

    Two at a time: compiling more models of one class in one process reaches torch's limit on recompilation.
    """
    speeds = {}
    for cell in cells:
        file = path / _SPEED / f"{cell.name}.json"
        if not file.exists():
            models = {name: build_recipe(recipes[name], num_classes=num_classes) for name in (PLAIN, cell.name)}
            try:
                measured = measure_speeds(models, training, rounds=rounds, baseline=PLAIN)
            except Exception as error:
                work.failed(f"{_SPEED}/{cell.name}", error)
                continue
            file.parent.mkdir(exist_ok=True)
            write_json(file, measured)
        speeds[cell.name] = read_json(file)
    return speeds


def _results(
    folder: RunFolder,
    cells: Sequence[Cell],
    flops: dict[str, int],
    splits: ImageSplits,
    speeds: dict[str, Any],
    work: SharedWork,
    training: TrainingSettings,
    command: str | None,
) -> dict[str, Any]:
    runs: dict[str, dict[int, Run]] = {}
    for unit in work.units:
        name, _, seed = unit.rpartition("/seed-")
        found = runs.setdefault(name, {})
        if work.done(unit):
            found[int(seed)] = Run(folder.path / unit, read_json(folder.path / unit / RESULTS_FILE))
    described = {}
    for cell in cells:
        described[cell.name] = {
            "merge": to_json(cell.merge),
            "options": cell.options,
            "flops": flops[cell.name],
            **_summary(runs[cell.name], runs[PLAIN]),
            "speed": speeds.get(cell.name),
        }
    failed = [*work.units, *(f"{_SPEED}/{cell.name}" for cell in cells if cell.name not in speeds)]
    settings = next(iter(runs[PLAIN].values())).results["settings"] if runs[PLAIN] else None
    return {
        "study": "sweep",
        "command": command,
        "settings": folder.settings,
        "model": settings and settings["model"],
        "data": splits.description,
        "metric": "mAP" if splits.multi_label else "accuracy",
        "plain": {"flops": flops[PLAIN], **_summary(runs[PLAIN], None)},
        "cells": described,
        "errors": {unit: error["error"] for unit in failed if (error := work.error(unit)) is not None},
        "missing": [unit for unit in work.units if not work.done(unit) and work.error(unit) is None],
        "environment": environment(device_of(training)),
        "folder": str(folder.path),
    }


def _summary(runs: dict[int, Run], baseline: dict[int, Run] | None) -> dict[str, Any]:
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
