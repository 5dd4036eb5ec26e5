"""What a merger in trained models costs, before and after how much training: speed-ups times budgets."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores, scores_of
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.image_batches import calibration_batch
from patchmerger.acceleration.placement import ChosenPlacement, choose_placement
from patchmerger.acceleration.query_initialisation import calibrate, recommended_query_init
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.run import check_classes
from patchmerger.acceleration.settings import PlacementSettings, QueryInit, RecoverySettings
from patchmerger.acceleration.teachers import Teacher, find_teacher
from patchmerger.data import ImageSplits, default_augmentation, load_images
from patchmerger.hosts import find_host
from patchmerger.inserted import mergers
from patchmerger.insertion import insert
from patchmerger.models.build import square_input
from patchmerger.models.classifier import Classifier
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder, read_settings
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import TRAINING_NOISE, mean_sd
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings
from patchmerger.studies.settings import AccelerationStudySettings
from patchmerger.studies.training_runs import finished
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import FitSettings


def accelerate_study(
    settings: AccelerationStudySettings, *, out: Path | None = None, command: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Accelerate trained plain models to several speed-ups with several budgets of training.

    A budget is a share of the steps that the plain model was trained for. Beside the merged models stands the plain
    one, fine-tuned with the labels for the same budget. The same call again resumes an interrupted study.

    Args:
        settings: What is studied.
        out: The folder; runs/accelerate-study-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Models or speed-ups that cannot be studied, or a folder of another study; before any training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    trained = [_Trained(folder) for folder in settings.models]
    recorded = {**to_json(settings), "models": [t.teacher.found.fingerprint for t in trained]}
    folder = RunFolder(out or default_folder("accelerate", "study", recorded), recorded)
    if (known := finished(folder)) is not None:
        return known
    net = trained[0].teacher.net
    places = {speedup: choose_placement(net, PlacementSettings(speedup)) for speedup in settings.speedups}
    folder.begin()
    with folder.exclusive() as done:
        return done or folder.finish({"command": command, **_results(settings, trained, places, folder, progress)})


def _results(
    settings: AccelerationStudySettings,
    trained: list[_Trained],
    places: dict[float, ChosenPlacement],
    folder: RunFolder,
    progress: bool,
) -> dict[str, Any]:
    """Train and evaluate every cell that is not done, and measure the speed."""
    cells: list[dict[str, Any]] = []
    for number, model in enumerate(trained):
        bench = _Bench(model, folder.path / f"model-{number}", settings, progress)
        alone = {"model": number, "query_init": "plain", "speedup": 1.0}
        cells += [{**alone, "budget": budget, **bench.plain(budget)} for budget in settings.budgets]
        for (speedup, place), init in product(places.items(), settings.query_inits):
            one = {"model": number, "query_init": init, "speedup": speedup}
            cells += [{**one, "budget": budget, **bench.merged(place, init, budget)} for budget in settings.budgets]
    net = trained[0].teacher.net
    device = device_of(settings.recovery)
    merged = {
        f"{s:g}": insert(copy.deepcopy(net), p.num_tokens, p.after, positions=p.positions) for s, p in places.items()
    }
    recovery = settings.recovery
    timing = TimingSettings(min(32, recovery.batch_size), rounds=settings.rounds, device=str(device))
    speed = measure({"plain": net, **merged}, timing)
    return {
        "study": "accelerate",
        "settings": folder.settings,
        "models": [str(path) for path in settings.models],
        "model": to_json(trained[0].model),
        "data": trained[0].images.description,
        "steps": [t.steps for t in trained],
        "places": {f"{speedup:g}": place.as_dict() for speedup, place in places.items()},
        "cells": cells,
        "curves": curves(cells),
        "speed": speed.as_dict(),
        "environment": environment(device),
        "folder": str(folder.path),
    }


def curves(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the models, for each query initialisation, speed-up and budget.

    ``difference`` is the accuracy less that of the plain model as it was trained; ``kept`` their ratio; ``leaves_out``
    what they know nothing of where there is one model.
    """
    found: list[dict[str, Any]] = []
    plain = {c["model"]: c["accuracy"] for c in cells if c["query_init"] == "plain" and c["budget"] == 0}
    for key in dict.fromkeys((c["query_init"], c["speedup"], c["budget"]) for c in cells):
        same = [c for c in cells if (c["query_init"], c["speedup"], c["budget"]) == key]
        mean, sd = mean_sd([c["accuracy"] for c in same])
        difference, _ = mean_sd([c["accuracy"] - plain[c["model"]] for c in same])
        kept, _ = mean_sd([c["accuracy"] / plain[c["model"]] for c in same])
        row = {"query_init": key[0], "speedup": key[1], "budget": key[2], "accuracy": mean, "difference": difference}
        found.append({
            **row, "sd": sd if len(same) > 1 else None, "kept": kept,
            "leaves_out": TRAINING_NOISE if len(same) == 1 else None,
        })  # fmt: skip
    return found


class _Trained:
    """A plain model, its images, and how long it was trained."""

    def __init__(self, folder: Path) -> None:
        if not (folder / RESULTS_FILE).is_file():
            raise FileNotFoundError(f"models: {folder} has no {RESULTS_FILE}: it is no finished run of patchmerger fit")
        run = read_settings(folder, FitSettings)
        self.seed, self.data = run.seed, run.data
        self.teacher: Teacher = find_teacher(folder)
        self.augmentation = run.augmentation or default_augmentation(run.data.source)
        self.images: ImageSplits = load_images(self.data, seed=self.seed)
        check_classes(self.teacher, self.images, self.data.source)
        self.model = run.model.resolve(native_size(self.images))
        self.steps: int = run.training.epochs * (len(self.images.train) // run.training.batch_size)


class _Bench:
    """Everything that is done with one plain model; each finding is kept in a file of its own."""

    def __init__(self, model: _Trained, path: Path, settings: AccelerationStudySettings, progress: bool) -> None:
        self.model, self.path, self.progress = model, path, progress
        self.recovery, self.count = settings.recovery, settings.calibration_images
        self.device = device_of(self.recovery)
        self.image_size = square_input(model.teacher.net)
        path.mkdir(parents=True, exist_ok=True)

    def plain(self, budget: float) -> dict[str, Any]:
        """The plain model, fine-tuned with the labels alone."""
        alone = replace(self.recovery, teacher_weight=0.0, feature_weight=0.0, label_weight=1.0, merger_first=0.0)
        return self._cell(f"plain-{budget:g}", lambda: copy.deepcopy(self.model.teacher.net), budget, alone)

    def merged(self, place: ChosenPlacement, query_init: QueryInit, budget: float) -> dict[str, Any]:
        """The merged model, recovered."""
        name = f"{place.wanted:g}-{query_init}-{budget:g}"
        grid = find_host(self.model.teacher.net).grid is not None
        taken = recommended_query_init(recovers=budget > 0, grid=grid) if query_init == "best" else query_init
        return self._cell(name, lambda: self._student(place, taken), budget, self.recovery)

    def _student(self, place: ChosenPlacement, query_init: QueryInit) -> nn.Module:
        """The merged model with its queries initialised, which is done once for all budgets."""
        teacher = self.model.teacher
        student = place.merged(teacher.net, query_init)
        (merger,) = mergers(student)
        file = self.path / f"{place.wanted:g}-{query_init}.safetensors"
        if not file.exists():
            images = calibration_batch(
                self.model.images.train, teacher.preprocessing, image_size=self.image_size, count=self.count,
                seed=self.model.seed,
            )  # fmt: skip
            calibrate(student.to(self.device), images, method=query_init, seed=self.model.seed)
            student.cpu()
            write_tensors(file, merger.module.state_dict())
        merger.module.load_state_dict(read_tensors(file))
        return student

    def _cell(
        self, name: str, student: Callable[[], nn.Module], budget: float, recovery: RecoverySettings
    ) -> dict[str, Any]:
        """Train for the budget and evaluate on the test images, unless that is done."""
        file = self.path / f"{name}.json"
        if not file.exists():
            write_json(file, self._evaluated(name, student(), budget, recovery))
            if self.progress:
                accuracy = 100 * read_json(file)["accuracy"]
                print(f"{self.path.name}, {name}: {accuracy:.2f}%", file=sys.stderr, flush=True)
        found: dict[str, Any] = read_json(file)
        return found

    def _evaluated(self, name: str, student: nn.Module, budget: float, recovery: RecoverySettings) -> dict[str, Any]:
        model, steps, seconds = self.model, round(budget * self.model.steps), 0.0
        if steps:
            seconds = distill(
                student, model.teacher.net, model.images, preprocessing=model.teacher.preprocessing,
                recovery=replace(recovery, steps=steps, scope="all"), augmentation=model.augmentation,
                workers=model.data.workers, seed=model.seed, out=self.path / name, progress=False,
            )["seconds"]  # fmt: skip
        found = compare_scores(self._scores(student), self._teacher_scores, model.images.test.targets)
        return {**found, "steps": steps, "seconds": seconds}

    @cached_property
    def _teacher_scores(self) -> Tensor:
        return self._scores(copy.deepcopy(self.model.teacher.net))

    def _scores(self, net: nn.Module) -> Tensor:
        model = self.model
        return scores_of(
            Classifier(net.to(self.device)), model.images.test, model.teacher.preprocessing,
            image_size=self.image_size, workers=model.data.workers, progress=False,
        )  # fmt: skip
