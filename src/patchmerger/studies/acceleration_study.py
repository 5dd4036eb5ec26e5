"""What a merger in trained models costs, before and after how much training: speed-ups times budgets."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores, scores_of
from patchmerger.acceleration.distillation import device_of, distill
from patchmerger.acceleration.image_batches import calibration_batch
from patchmerger.acceleration.placement import ChosenPlacement, choose_placement
from patchmerger.acceleration.query_initialisation import calibrate, recommended_query_init
from patchmerger.acceleration.run import check_classes
from patchmerger.acceleration.settings import PlacementSettings, QueryInit, RecoverySettings
from patchmerger.acceleration.teacher import Teacher, find_teacher
from patchmerger.data import ImageSplits, default_augmentation, load_images
from patchmerger.inserted import mergers
from patchmerger.insertion import insert
from patchmerger.models.build import square_input
from patchmerger.models.classifier import Classifier
from patchmerger.runs.environment import environment
from patchmerger.runs.files import write_json
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder, read_settings
from patchmerger.runs.statistics import TRAINING_NOISE, mean_sd
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings
from patchmerger.training.settings import FitSettings


def accelerate_study(
    *,
    models: list[Path],
    speedups: list[float] = [1.5, 1.8, 2.0, 2.5, 3.0],  # noqa: B006 - read, never changed
    budgets: list[float] = [0.0, 0.01, 0.05, 0.1],  # noqa: B006
    starts: list[QueryInit] = ["best", "random"],  # noqa: B006
    recovery: RecoverySettings = RecoverySettings(),
    calibration_images: int = 512,
    rounds: int = 15,
    out: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Accelerate trained plain models to several speed-ups with several budgets of training.

    A budget is a share of the steps that the plain model was trained for. Beside the merged models stands the plain
    one, fine-tuned with the labels for the same budget. The same command again goes on where it was interrupted.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        speedups: Wanted speed-ups, by FLOPs.
        budgets: Shares of the original training steps; 0 is no training at all.
        starts: How the queries begin: the first is the one that counts, the others are references.
        recovery: How accuracy is won back.
        calibration_images: Training images that a start is computed from.
        rounds: Rounds of the speed measurement, in which all models take turns.
        out: The folder; runs/accelerate-study-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Settings that cannot be studied, or a folder of another study; before any training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    _check(models, speedups, budgets, starts)
    trained = [_Trained(folder) for folder in models]
    settings: dict[str, Any] = {
        "models": [t.teacher.found.fingerprint for t in trained], "speedups": speedups,
        "budgets": budgets, "starts": starts, "recovery": recovery,
        "calibration_images": calibration_images, "rounds": rounds,
    }  # fmt: skip
    folder = RunFolder(out or default_folder("accelerate", "study", settings), settings)
    if folder.results is not None:
        return folder.results
    places = {speedup: choose_placement(trained[0].teacher.net, PlacementSettings(speedup)) for speedup in speedups}
    folder.begin()
    cells: list[dict[str, Any]] = []
    for number, model in enumerate(trained):
        bench = _Bench(model, folder.path / f"model-{number}", recovery, calibration_images, progress)
        alone = {"model": number, "start": "plain", "speedup": 1.0}
        cells += [{**alone, "budget": budget, **bench.plain(budget)} for budget in budgets]
        for speedup, place in places.items():
            for start in starts:
                for budget in budgets:
                    found = bench.merged(place, start, budget)
                    cells.append({"model": number, "start": start, "speedup": speedup, "budget": budget, **found})
    device = device_of(recovery)
    net = trained[0].teacher.net
    merged = {
        f"{s:g}": insert(copy.deepcopy(net), p.num_tokens, p.after, positions=p.positions) for s, p in places.items()
    }
    timing = TimingSettings(batch_size=min(32, recovery.batch_size), rounds=rounds, device=str(device))
    speed = measure({"plain": net, **merged}, timing)
    results = {
        "command": command,
        "settings": folder.settings,
        "models": [str(path) for path in models],
        "data": trained[0].images.description,
        "steps": [t.steps for t in trained],
        "places": {f"{speedup:g}": place.as_dict() for speedup, place in places.items()},
        "cells": cells,
        "curves": curves(cells),
        "speed": speed.as_dict(),
        "environment": environment(device),
        "folder": str(folder.path),
    }
    folder.finish(results)
    return results


def curves(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the models, for each start, speed-up and budget.

    ``difference`` is the accuracy less that of the plain model as it was trained; ``kept`` their ratio; ``leaves_out``
    what they know nothing of where there is one model.
    """
    found: list[dict[str, Any]] = []
    plain = {c["model"]: c["accuracy"] for c in cells if c["start"] == "plain" and c["budget"] == 0}
    for key in dict.fromkeys((c["start"], c["speedup"], c["budget"]) for c in cells):
        same = [c for c in cells if (c["start"], c["speedup"], c["budget"]) == key]
        mean, sd = mean_sd([c["accuracy"] for c in same])
        difference, _ = mean_sd([c["accuracy"] - plain[c["model"]] for c in same])
        kept, _ = mean_sd([c["accuracy"] / plain[c["model"]] for c in same])
        row = {"start": key[0], "speedup": key[1], "budget": key[2], "accuracy": mean, "difference": difference}
        found.append({
            **row, "sd": sd if len(same) > 1 else None, "kept": kept,
            "leaves_out": TRAINING_NOISE if len(same) == 1 else None,
        })  # fmt: skip
    return found


class _Trained:
    """A plain model, its images, and how long it was trained."""

    def __init__(self, folder: Path) -> None:
        file = folder / RESULTS_FILE
        if not file.is_file():
            raise FileNotFoundError(f"models: {folder} has no {RESULTS_FILE}: it is no finished run of patchmerger fit")
        run = read_settings(folder, FitSettings)
        self.seed = run.seed
        self.teacher: Teacher = find_teacher(folder)
        self.data = run.data
        self.augmentation = run.augmentation or default_augmentation(run.data.source)
        self.images: ImageSplits = load_images(self.data, seed=self.seed)
        check_classes(self.teacher, self.images, self.data.source)
        self.steps: int = run.training.epochs * (len(self.images.train) // run.training.batch_size)


class _Bench:
    """Everything that is done with one plain model; each finding is kept in a file of its own."""

    def __init__(self, model: _Trained, path: Path, recovery: RecoverySettings, count: int, progress: bool) -> None:
        self.model, self.path, self.recovery, self.count, self.progress = model, path, recovery, count, progress
        self.device = device_of(recovery)
        path.mkdir(parents=True, exist_ok=True)

    def plain(self, budget: float) -> dict[str, Any]:
        """The plain model, fine-tuned with the labels alone."""
        alone = replace(self.recovery, teacher_weight=0.0, feature_weight=0.0, label_weight=1.0, merger_first=0.0)
        return self._cell(f"plain-{budget:g}", copy.deepcopy(self.model.teacher.net), budget, alone)

    def merged(self, place: ChosenPlacement, start: QueryInit, budget: float) -> dict[str, Any]:
        """The merged model, recovered."""
        name = f"{place.wanted:g}-{start}"
        if (self.path / f"{name}-{budget:g}.json").exists():
            return self._cell(f"{name}-{budget:g}", self.model.teacher.net, budget, self.recovery)
        student = insert(
            copy.deepcopy(self.model.teacher.net), place.num_tokens, place.after, positions=place.positions
        )
        (merger,) = mergers(student)
        taken = recommended_query_init(recovers=budget > 0) if start == "best" else start
        file = self.path / f"{place.wanted:g}-{taken}.safetensors"
        if not file.exists():
            teacher, size = self.model.teacher, square_input(self.model.teacher.net)
            images = calibration_batch(
                self.model.images.train, teacher.preprocessing, image_size=size, count=self.count, seed=self.model.seed
            )
            calibrate(student.to(self.device), images, method=taken, seed=self.model.seed)
            student.cpu()
            save_file(merger.module.state_dict(), file)
        merger.module.load_state_dict(load_file(file))
        return self._cell(f"{name}-{budget:g}", student, budget, self.recovery)

    def _cell(self, name: str, student: nn.Module, budget: float, recovery: RecoverySettings) -> dict[str, Any]:
        """Train for the budget, unless that is done, and look at the test images."""
        file = self.path / f"{name}.json"
        if not file.exists():
            write_json(file, self._judged(name, student, budget, recovery))
            if self.progress:
                found = json.loads(file.read_text())
                print(f"{self.path.name}, {name}: {100 * found['accuracy']:.2f}%", file=sys.stderr, flush=True)
        found_cell: dict[str, Any] = json.loads(file.read_text())
        return found_cell

    def _judged(self, name: str, student: nn.Module, budget: float, recovery: RecoverySettings) -> dict[str, Any]:
        model, steps, seconds = self.model, round(budget * self.model.steps), 0.0
        if steps:
            seconds = distill(
                student, model.teacher.net, model.images, preprocessing=model.teacher.preprocessing,
                recovery=replace(recovery, steps=steps, scope="all"), augmentation=model.augmentation,
                workers=model.data.workers, seed=model.seed, out=self.path / name, progress=False,
            )["seconds"]  # fmt: skip
        scores, taught = (self._scores(net) for net in (student, copy.deepcopy(model.teacher.net)))
        found = compare_scores(scores, taught, model.images.test.targets)
        return {**found, "steps": steps, "seconds": seconds}

    def _scores(self, net: nn.Module) -> Tensor:
        model = self.model
        return scores_of(
            Classifier(net.to(self.device)), model.images.test, model.teacher.preprocessing,
            image_size=square_input(model.teacher.net), workers=model.data.workers, progress=False,
        )  # fmt: skip


def _check(models: list[Path], speedups: list[float], budgets: list[float], starts: list[QueryInit]) -> None:
    if not models:
        raise ValueError("models is empty: name at least one folder of a run of patchmerger fit --merge null")
    if not speedups or min(speedups) <= 1:
        raise ValueError(f"speedups ({speedups}) must be at least one number, each above 1")
    if 0 not in budgets or min(budgets) < 0:
        raise ValueError(f"budgets ({budgets}) must be shares of the training steps from 0 on, and 0 one of them")
    if not starts:
        raise ValueError("starts is empty: name at least one, such as best")
    for name, values in (("models", models), ("speedups", speedups), ("budgets", budgets), ("starts", starts)):
        if len(set(values)) < len(values):
            raise ValueError(f"{name} ({values}) names one twice")
