"""What makes trained models faster, and what it costs: methods times speed-ups times lengths of recovery."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from patchmerger.acceleration.placement import ChosenPlacement, candidate_placements
from patchmerger.acceleration.placement_trials import PlacementTrials, best_placement
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import PlacementSettings, QueryInit, Scope
from patchmerger.costs.counting import flops_of
from patchmerger.runs.files import made_once, read_json, write_json
from patchmerger.runs.finished_work import FIXED_BY
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import TRAINING_NOISE, mean_sd, over_images, over_seeds
from patchmerger.speed.measurement import measure
from patchmerger.studies.methods import CONTROLS, Method, at_equal_flops, known_methods
from patchmerger.studies.staged_placement import StagedPlacement, staged_placement
from patchmerger.studies.trained_models import TrainedModel, trained_models
from patchmerger.studies.trained_settings import AccelerationStudySettings
from patchmerger.studies.trained_study import TrainedStudy, study_folder

_CACHE = "kept"
_SPEED_FILE = "speed.json"
_GROUPED = ("method", "speedup", "scope", "epochs", "keep_rate")


def accelerate_study(
    settings: AccelerationStudySettings,
    *,
    out: Path | None = None,
    reuse: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make trained plain models faster by several methods, recover each alike, and compare them.

    Methods at one speed-up, or keep rate, share a placement, the tokens that the blocks before it computed, images and
    order. Test images are looked at once, for the results. The same call again resumes an interrupted study; in a
    second process it shares the work.

    Args:
        settings: What is studied.
        out: The folder; runs/accelerate-study-FINGERPRINT if not given.
        reuse: The folder of an earlier study: what is finished there under the same settings is copied, not made
            again, so that a study can grow by methods, speed-ups, lengths and models.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Models, methods or speed-ups that cannot be studied, a folder of another study, or one to ``reuse``
            of other settings; before any training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    unknown = [name for name in settings.methods if name not in known_methods()]
    if unknown:
        raise ValueError(f"methods ({unknown[0]!r}) must be among {', '.join(known_methods())}")
    trained = trained_models(settings.models, settings.test_images)
    folder = study_folder("accelerate", settings, trained, out, _Study.GRID)
    if (known := folder.results) is not None:
        return known
    candidates = {
        speedup: candidate_placements(trained[0].teacher.model, PlacementSettings(speedup), settings.candidates)
        for speedup in settings.speedups
    }
    staged = {rate: staged_placement(trained[0].teacher.model, rate) for rate in settings.keep_rates}
    study = _Study(settings, trained, candidates, staged, folder, reuse, progress)
    folder.begin()
    study.choose_places()
    study.recover_all()
    return study.finish(command)


@dataclass(frozen=True)
class Cell:
    """The plain model of this number, made faster and recovered for so many epochs.

    ``speedup`` is the wanted one; with ``keep_rate``, the share of tokens that each of three reductions keeps, it is
    ``None``.
    """

    model: int
    method: str
    speedup: float | None
    scope: Scope
    epochs: float
    keep_rate: float | None = None

    @property
    def name(self) -> str:
        """Its name, and that of its files."""
        recovered = f"{self.scope}-{self.epochs:g}" if self.epochs else "unrecovered"
        return f"model-{self.model}/{budget_name(self.speedup, self.keep_rate)}-{self.method}-{recovered}"


def budget_name(speedup: float | None, keep_rate: float | None) -> str:
    """A wanted speed-up or keep rate, as names have it."""
    return f"{speedup:g}" if keep_rate is None else f"keep-{keep_rate:g}"


def cells_of(settings: AccelerationStudySettings) -> list[Cell]:
    """All cells; what does not depend on a setting is there once.

    Neighbours differ in model and speed-up, so that processes that share the work keep different tokens at first.
    """
    found: dict[str, Cell] = {}
    for method, epochs, scope in product(settings.methods, settings.epochs, settings.scopes):
        for number, (speedup, rate) in product(range(len(settings.models)), _budgets(settings)):
            one = Cell(number, method, speedup, scope if epochs else settings.scopes[0], epochs, rate)
            if method == "plain":  # as long whatever it is compared with, and never with frozen blocks
                one = replace(
                    one, speedup=1.0, keep_rate=None, scope=one.scope if settings.recovery.frozen_blocks == 0 else "all"
                )
            found.setdefault(one.name, one)
    return list(found.values())


def _budgets(settings: AccelerationStudySettings) -> list[tuple[float | None, float | None]]:
    """Speed-ups and keep rates, one of the two each."""
    return [*((speedup, None) for speedup in settings.speedups), *((None, rate) for rate in settings.keep_rates)]


class _Study(TrainedStudy[Cell]):
    """The cells of a study, after the trials that choose where each speed-up merges."""

    GRID = (*TrainedStudy.GRID, "methods", "speedups", "keep_rates", "scopes", "epochs", "candidates")

    def __init__(
        self,
        settings: AccelerationStudySettings,
        trained: Sequence[TrainedModel],
        candidates: dict[float, list[ChosenPlacement]],
        staged: dict[float, StagedPlacement],
        folder: RunFolder,
        reuse: Path | None,
        progress: bool,
    ) -> None:
        self.settings, self.candidates, self.staged = settings, candidates, staged
        self._matched: dict[tuple[str, str], ChosenPlacement | StagedPlacement] = {}
        self._flops: dict[str, int] = {}
        self.trials = {
            f"places/{speedup:g}-after-{place.after}": place
            for speedup, places in candidates.items()
            if len(places) > 1
            for place in places
        }
        device = device_of(settings.recovery)
        super().__init__(
            folder, reuse, trained, cells_of(settings), list(self.trials), device=device, progress=progress
        )

    def choose_places(self) -> None:
        """Try the candidates of each speed-up on the first model."""
        longest = max(self.settings.epochs) or 1.0
        first, recovery = self.trained[0], replace(self.settings.recovery, epochs=longest)
        tried = PlacementTrials(
            first.teacher, first.images, recovery, True, first.augmentation, first.data.workers, first.seed,
            self.path / _CACHE,
        )  # fmt: skip
        for unit in self.work.take(list(self.trials)):
            fixed_by = self.fixed_by(0, recovery, self.trials[unit].as_dict())
            if self.taken_over(unit, fixed_by, tensors=False):
                continue
            trial = tried.try_placement(self.trials[unit], self.path / unit)
            write_json(self.file(unit), {**trial, FIXED_BY: fixed_by})
            self.say(f"{unit}: {100 * trial['agreement']:.2f}% agree with the plain model")
            shutil.rmtree(self.path / unit)
        self.places: dict[float, ChosenPlacement] = {}
        self.tried: dict[str, Any] = {}
        for speedup, places in self.candidates.items():
            units = [f"places/{speedup:g}-after-{place.after}" for place in places]
            found = [read_json(self.file(unit)) for unit in units if unit in self.trials]
            self.places[speedup] = best_placement(places, found) if found else places[0]
            self.tried[f"{speedup:g}"] = [{**p.as_dict(), **f} for p, f in zip(places, found, strict=False)]

    def recover_all(self) -> None:
        """Recover and evaluate every cell that is not done."""
        self.evaluate_cells()
        shutil.rmtree(self.path / _CACHE, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """What is known once all is done, with the interleaved speed of the models."""
        found = self.found_cells()
        return {
            "study": "accelerate",
            **self.described(),
            "places": {f"{speedup:g}": place.as_dict() for speedup, place in self.places.items()},
            "stages": {f"{rate:g}": place.as_dict() for rate, place in self.staged.items()},
            "trials": self.tried,
            "cells": found,
            "curves": self._curves(found),
            "speed": self._speed(),
        }

    def _speed(self) -> dict[str, Any]:
        """Measured once, in a file of its own: without it and the results, the speed is measured where one likes."""
        timing = self.timing(self.settings.speed_batch_size, self.settings.rounds)
        found: dict[str, Any] = made_once(self.path / _SPEED_FILE, lambda: measure(self._timed(), timing).as_dict())
        return found

    def _timed(self) -> dict[str, nn.Module]:
        """The models whose speed is measured: of each budget every method that computes something else."""
        net = self.trained[0].teacher.model
        models: dict[str, nn.Module] = {"plain": net}
        for (speedup, rate), name in product(_budgets(self.settings), self.settings.methods):
            if (timed := _timed_as(name, speedup, rate)) not in models:
                method, images = Method(name, net, self._place(name, speedup, rate)), self.calibration_images(0, 64)
                models[timed] = method.student(images, recovers=True, seed=0)
        return models

    def _place(self, method: str, speedup: float | None, keep_rate: float | None) -> ChosenPlacement | StagedPlacement:
        """Where a method merges; for a speed-up with as many tokens as give it the FLOPs of the merger, found once."""
        key = (method, budget_name(speedup, keep_rate))
        if key not in self._matched:
            chosen = self.places.get(speedup) if speedup is not None else None
            if chosen is not None:
                self._matched[key] = at_equal_flops(method, self.trained[0].teacher.model, chosen)
            elif keep_rate is not None:
                self._matched[key] = self.staged[keep_rate]
            else:  # a plain model has no place
                known: list[ChosenPlacement | StagedPlacement] = [*self.places.values(), *self.staged.values()]
                self._matched[key] = known[0]
        return self._matched[key]

    def placed(self, cell: Cell) -> Any:
        """Where the model of a cell merges; a plain one does not."""
        return None if cell.method == "plain" else self._place(cell.method, cell.speedup, cell.keep_rate).as_dict()

    def evaluated(self, cell: Cell) -> tuple[Tensor, dict[str, Any]]:
        """Make the model, recover it, and evaluate it on the test images."""
        model, recovers = self.trained[cell.model], cell.epochs > 0
        place = self._place(cell.method, cell.speedup, cell.keep_rate)
        method = Method(cell.method, model.teacher.model, place)
        images = self.calibration_images(cell.model, self.settings.calibration_images)
        student = method.student(images, recovers=recovers, seed=model.seed)
        timed = _timed_as(cell.method, cell.speedup, cell.keep_rate)
        if timed not in self._flops:
            self._flops[timed] = flops_of(student)
        recovered: dict[str, Any] = {"steps": 0, "seconds": 0.0, "phases": {}}
        if recovers:
            recovery = method.recovery(replace(self.settings.recovery, scope=cell.scope, epochs=cell.epochs))
            recovered = self.recovered(cell, student, recovery, shared_cache=self.path / _CACHE)
        scores = self.scores(cell.model, student)
        return scores.argmax(dim=1), {
            **self.compared(cell.model, scores),
            "num_tokens": None if cell.method in ("plain", "cut") else place.num_tokens,
            "blocks": method.net_blocks if cell.method == "cut" else None,
            "flops": self._flops[timed],
            "steps": recovered["steps"],
            "seconds": recovered["seconds"],
            "watched": {name: phase["watched"] for name, phase in recovered["phases"].items()},
        }

    def _curves(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over the models of each method, budget and recovery, with what differs from plain and from the first.

        ``difference`` is to the plain model; ``behind`` what the first method is ahead by, at the same budget with
        the same recovery. Both are paired, over the models where there are several, and over the images, each with
        its mean over the models.
        """
        plain, groups = self.right_of_plain(), self.groups(found, _GROUPED)
        curves = []
        for (method, *rest), (cells, ours) in groups.items():
            speedup, scope, epochs, rate = rest
            _, first = groups.get((self.settings.methods[0], *rest), (None, None))
            accuracy, sd = mean_sd([cell["accuracy"] for cell in cells])
            several = len(cells) > 1
            curves.append({
                "method": method, "speedup": speedup, "keep_rate": rate, "scope": scope, "epochs": epochs,
                "timed_as": _timed_as(method, speedup, rate), "num_tokens": cells[0]["num_tokens"],
                "flops": cells[0]["flops"], "accuracy": accuracy, "sd": sd if several else None,
                "agreement": mean_sd([cell["agreement"] for cell in cells])[0],
                "difference": _paired(ours, plain),
                "behind": None if first is None or first is ours else _paired(first, ours),
                "leaves_out": None if several else TRAINING_NOISE,
            })  # fmt: skip
        return curves


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, Any]:
    """Paired difference in accuracy of models, by the images that each is right on: over models, and over images.

    Over images by the mean of the models for each; where the test sets of the models differ in size, by all images.
    """
    join = _mean if len({len(right) for right in ours}) == 1 else torch.cat
    means = [join(list(right)).tolist() for right in (ours, theirs)]
    over = {"images": to_json(over_images(*means, trainings=len(ours)))}
    if len(ours) > 1:
        over["models"] = to_json(over_seeds(*([float(r.mean()) for r in right] for right in (ours, theirs))))
    return over


def _mean(right: list[Tensor]) -> Tensor:
    return torch.stack(right).mean(dim=0)


def _timed_as(method: str, speedup: float | None, keep_rate: float | None) -> str:
    """The name of the timing that tells a method's speed: of queries it matters only whether they are located."""
    if method == "plain":
        return "plain"
    if method in CONTROLS or method not in get_args(QueryInit):
        kind = "located" if method == "regions" else method
    else:
        kind = "located" if method in ("located", "best") else "patchmerger"
    return f"{kind} {budget_name(speedup, keep_rate)}"
