"""What makes trained models faster, and what it costs: methods times speed-ups times lengths of recovery."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.image_batches import calibration_batch, normalized_batches
from patchmerger.acceleration.placement import ChosenPlacement, candidate_placements
from patchmerger.acceleration.placement_trials import PlacementTrials, best_placement
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import PlacementSettings, QueryInit, Scope
from patchmerger.costs.model_cost import cost
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.run_folder import RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.shared_work import SharedWork
from patchmerger.runs.statistics import TRAINING_NOISE, mean_sd, over_images, over_seeds
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings
from patchmerger.studies.methods import CONTROLS, Method, at_equal_flops, known_methods
from patchmerger.studies.settings import AccelerationStudySettings
from patchmerger.studies.trained_models import TrainedModel, trained_models
from patchmerger.studies.training_runs import WORK, finished

_CACHE = "kept"
_SPEED_FILE = "speed.json"
_HELD_BYTES = 2 * 2**30  # prepared test images


def accelerate_study(
    settings: AccelerationStudySettings, *, out: Path | None = None, command: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Make trained plain models faster by several methods, recover each alike, and compare them.

    Methods at one speed-up share a placement, the tokens that the blocks before it computed, images and order. Test
    images are looked at once, for the results. The same call again resumes an interrupted study; in a second process
    it shares the work.

    Args:
        settings: What is studied.
        out: The folder; runs/accelerate-study-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Models, methods or speed-ups that cannot be studied, or a folder of another study; before any
            training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    unknown = [name for name in settings.methods if name not in known_methods()]
    if unknown:
        raise ValueError(f"methods ({unknown[0]!r}) must be among {', '.join(known_methods())}")
    trained = trained_models(settings.models)
    recorded = {**to_json(settings), "models": [t.teacher.found.fingerprint for t in trained]}
    folder = RunFolder(out or default_folder("accelerate", "study", recorded), recorded)
    if (known := finished(folder)) is not None:
        return known
    candidates = {
        speedup: candidate_placements(trained[0].teacher.net, PlacementSettings(speedup), settings.candidates)
        for speedup in settings.speedups
    }
    folder.begin()
    study = _Study(settings, trained, candidates, folder, progress)
    study.choose_places()
    study.recover_all()
    with study.work.lock("results", timeout=-1):  # another process may have finished meanwhile
        return finished(folder) or folder.finish({"command": command, **study.results()})


@dataclass(frozen=True)
class Cell:
    """One model, made faster and recovered.

    Attributes:
        model: Its number among the plain models.
        method: What makes it faster.
        speedup: The wanted speed-up.
        scope: What the recovery trains.
        epochs: Its length.
    """

    model: int
    method: str
    speedup: float
    scope: Scope
    epochs: float

    @property
    def name(self) -> str:
        """Its name, and that of its files."""
        recovered = f"{self.scope}-{self.epochs:g}" if self.epochs else "unrecovered"
        return f"model-{self.model}/{self.speedup:g}-{self.method}-{recovered}"


def cells_of(settings: AccelerationStudySettings) -> list[Cell]:
    """All cells; what does not depend on a setting is there once.

    Neighbours differ in model and speed-up, so that processes that share the work keep different tokens at first.
    """
    found: dict[str, Cell] = {}
    for method, epochs, scope in product(settings.methods, settings.epochs, settings.scopes):
        for number, speedup in product(range(len(settings.models)), settings.speedups):
            one = Cell(number, method, speedup, scope if epochs else settings.scopes[0], epochs)
            if method == "plain":  # as long whatever it is compared with, and never with frozen blocks
                one = replace(one, speedup=1.0, scope=one.scope if settings.recovery.frozen_blocks == 0 else "all")
            found.setdefault(one.name, one)
    return list(found.values())


class _Study:
    """The cells of a study, each kept in a file of its own."""

    def __init__(
        self,
        settings: AccelerationStudySettings,
        trained: Sequence[TrainedModel],
        candidates: dict[float, list[ChosenPlacement]],
        folder: RunFolder,
        progress: bool,
    ) -> None:
        self.settings, self.trained, self.candidates = settings, trained, candidates
        self.folder, self.path, self.progress = folder, folder.path, progress
        self.device = device_of(settings.recovery)
        self._prepared: dict[Any, list[Tensor]] = {}
        self._matched: dict[tuple[str, float], ChosenPlacement] = {}
        self._flops: dict[str, int] = {}
        self.cells = {cell.name: cell for cell in cells_of(settings)}
        self.trials = {
            f"places/{speedup:g}-after-{place.after}": place
            for speedup, places in candidates.items()
            if len(places) > 1
            for place in places
        }
        self.work = SharedWork(self.path / WORK, [*self.trials, *self.cells], self._is_done)

    def choose_places(self) -> None:
        """Try the candidates of each speed-up on the first model."""
        longest = max(self.settings.epochs) or 1.0
        first = self.trained[0]
        tried = PlacementTrials(
            first.teacher, first.images, replace(self.settings.recovery, epochs=longest), True, first.augmentation,
            first.data.workers, first.seed, self.path / _CACHE,
        )  # fmt: skip
        for unit in self.work.take(list(self.trials)):
            write_json(self._file(unit), tried.try_placement(self.trials[unit], self.path / unit))
            self._say(f"{unit}: {100 * read_json(self._file(unit))['agreement']:.2f}% agree with the plain model")
            shutil.rmtree(self.path / unit)
        self.places: dict[float, ChosenPlacement] = {}
        self.tried: dict[str, Any] = {}
        for speedup, places in self.candidates.items():
            units = [f"places/{speedup:g}-after-{place.after}" for place in places]
            found = [read_json(self._file(unit)) for unit in units if unit in self.trials]
            self.places[speedup] = best_placement(places, found) if found else places[0]
            self.tried[f"{speedup:g}"] = [{**p.as_dict(), **f} for p, f in zip(places, found, strict=False)]

    def recover_all(self) -> None:
        """Recover and evaluate every cell that is not done."""
        for unit in self.work.take(list(self.cells)):
            cell = self.cells[unit]
            predictions, found = self._evaluated(cell)
            write_tensors(self._file(unit).with_suffix(".safetensors"), {"predictions": predictions})
            write_json(self._file(unit), {**to_json(cell), **found})
            self._say(f"{unit}: {100 * found['accuracy']:.2f}%, {100 * found['agreement']:.2f}% agree with the plain")
        shutil.rmtree(self.path / _CACHE, ignore_errors=True)

    def results(self) -> dict[str, Any]:
        """What is known once all is done, with the interleaved speed of the models."""
        first = self.trained[0]
        found = [read_json(self._file(name)) for name in self.cells]
        return {
            "study": "accelerate",
            "settings": self.folder.settings,
            "models": [str(path) for path in self.settings.models],
            "model": to_json(first.model),
            "image_size": first.image_size,
            "data": first.images.description,
            "plain": [self._plain(number) for number in range(len(self.trained))],
            "places": {f"{speedup:g}": place.as_dict() for speedup, place in self.places.items()},
            "trials": self.tried,
            "cells": found,
            "curves": self._curves(found),
            "speed": self._speed(),
            "environment": environment(self.device),
            "folder": str(self.path),
        }

    def _speed(self) -> dict[str, Any]:
        """Measured once, in a file of its own: without it and the results, the speed is measured where one likes."""
        file = self.path / _SPEED_FILE
        if not file.exists():
            timing = TimingSettings(
                self.settings.speed_batch_size, rounds=self.settings.rounds, device=str(self.device),
                precision="bf16" if self.device.type == "cuda" else "float32",
            )  # fmt: skip
            write_json(file, measure(self._timed(), timing).as_dict())
        found: dict[str, Any] = read_json(file)
        return found

    def _timed(self) -> dict[str, nn.Module]:
        """The models whose speed is measured: of each speed-up every method that computes something else."""
        net = self.trained[0].teacher.net
        models: dict[str, nn.Module] = {"plain": net}
        for speedup, name in product(self.places, self.settings.methods):
            if (timed := _timed_as(name, speedup)) not in models:
                method, images = Method(name, net, self._place(name, speedup)), self._calibration_images(0, 64)
                models[timed] = method.student(images, recovers=True, seed=0)
        return models

    def _place(self, method: str, speedup: float) -> ChosenPlacement:
        """Where a method merges, with as many tokens as give it the FLOPs of the merger; found once."""
        if (method, speedup) not in self._matched:
            place = self.places.get(speedup) or next(iter(self.places.values()))
            self._matched[method, speedup] = at_equal_flops(method, self.trained[0].teacher.net, place)
        return self._matched[method, speedup]

    def _evaluated(self, cell: Cell) -> tuple[Tensor, dict[str, Any]]:
        """Make the model, recover it, and evaluate it on the test images."""
        model, recovers = self.trained[cell.model], cell.epochs > 0
        place = self._place(cell.method, cell.speedup)
        method = Method(cell.method, model.teacher.net, place)
        images = self._calibration_images(cell.model, self.settings.calibration_images)
        student = method.student(images, recovers=recovers, seed=model.seed)
        timed = _timed_as(cell.method, cell.speedup)
        if timed not in self._flops:
            self._flops[timed] = cost(student).flops
        recovered: dict[str, Any] = {"steps": 0, "seconds": 0.0, "phases": {}}
        if recovers:
            out = self.path / cell.name
            recovered = distill(
                student, model.teacher.net, model.images, preprocessing=model.teacher.preprocessing,
                recovery=method.recovery(replace(self.settings.recovery, scope=cell.scope, epochs=cell.epochs)),
                augmentation=model.augmentation, workers=model.data.workers, seed=model.seed, out=out,
                shared_cache=self.path / _CACHE, progress=False,
            )  # fmt: skip
            shutil.rmtree(out)
        scores = self._scores(cell.model, student)
        return scores.argmax(dim=1), {
            **compare_scores(scores, self._teacher_scores(cell.model), model.images.test.targets),
            "num_tokens": None if cell.method in ("plain", "cut") else place.num_tokens,
            "blocks": method.net_blocks if cell.method == "cut" else None,
            "flops": self._flops[timed],
            "steps": recovered["steps"],
            "seconds": recovered["seconds"],
            "watched": {name: phase["watched"] for name, phase in recovered["phases"].items()},
        }

    def _calibration_images(self, number: int, count: int) -> Tensor:
        model = self.trained[number]
        return calibration_batch(
            model.images.train, model.teacher.preprocessing, image_size=model.image_size, count=count, seed=model.seed
        ).to(self.device)

    def _teacher_scores(self, number: int) -> Tensor:
        file = self.path / f"model-{number}" / "plain.safetensors"
        with self.work.lock(f"plain-{number}", timeout=-1):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, {"scores": self._scores(number, self.trained[number].teacher.net)})
        return read_tensors(file)["scores"]

    def _scores(self, number: int, net: nn.Module) -> Tensor:
        classifier = Classifier(copy.deepcopy(net).to(self.device))
        with eval_mode(classifier), torch.no_grad():
            batches = self._test_batches(number)
            return torch.cat([classifier(images.to(next(classifier.parameters()))).float().cpu() for images in batches])

    def _test_batches(self, number: int) -> Iterable[Tensor]:
        """The prepared test images, which stay in memory where they are not too many; runs mostly share them."""
        model = self.trained[number]
        test = model.images.test
        batches = normalized_batches(
            test, model.teacher.preprocessing, model.image_size, batch_size=250, workers=model.data.workers
        )
        if len(test) * 3 * model.image_size**2 * 4 > _HELD_BYTES:
            return batches
        which = (str(model.data), hash(test.targets.numpy().tobytes()), model.teacher.preprocessing, model.image_size)
        if which not in self._prepared:
            self._prepared[which] = list(batches)
        return self._prepared[which]

    def _plain(self, number: int) -> dict[str, Any]:
        """The plain model on the test images."""
        targets = self.trained[number].images.test.targets
        scores = self._teacher_scores(number)
        return {"seed": self.trained[number].seed, **compare_scores(scores, scores, targets)}

    def _curves(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over the models of each method, speed-up and recovery, with what differs from plain and from the first.

        ``difference`` is to the plain model; ``behind`` what the first method is ahead by, at the same speed-up with
        the same recovery. Both are paired, over the models where there are several, and over the images, each with
        its mean over the models.
        """
        plain = [self._right(number, self._teacher_scores(number).argmax(dim=1)) for number in range(len(self.trained))]
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for cell in found:
            groups.setdefault(tuple(cell[name] for name in ("method", "speedup", "scope", "epochs")), []).append(cell)
        right = {
            key: [
                self._right(c["model"], self._predictions(Cell(*(c[f] for f in Cell.__dataclass_fields__))))
                for c in cells
            ]
            for key, cells in groups.items()
        }
        curves = []
        for (method, speedup, scope, epochs), cells in groups.items():
            ours, first = right[method, speedup, scope, epochs], (self.settings.methods[0], speedup, scope, epochs)
            accuracy, sd = mean_sd([cell["accuracy"] for cell in cells])
            several = len(cells) > 1
            curves.append({
                "method": method, "speedup": speedup, "scope": scope, "epochs": epochs,
                "timed_as": _timed_as(method, speedup), "num_tokens": cells[0]["num_tokens"],
                "flops": cells[0]["flops"], "accuracy": accuracy, "sd": sd if several else None,
                "agreement": mean_sd([cell["agreement"] for cell in cells])[0],
                "difference": _paired(ours, plain),
                "behind": None if method == first[0] or first not in right else _paired(right[first], ours),
                "leaves_out": None if several else TRAINING_NOISE,
            })  # fmt: skip
        return curves

    def _predictions(self, cell: Cell) -> Tensor:
        return read_tensors(self._file(cell.name).with_suffix(".safetensors"))["predictions"]

    def _right(self, number: int, predictions: Tensor) -> list[bool]:
        found: list[bool] = (predictions == self.trained[number].images.test.targets).tolist()
        return found

    def _file(self, unit: str) -> Path:
        file = self.path / f"{unit}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _is_done(self, unit: str) -> bool:
        return (self.path / f"{unit}.json").exists()

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


def _paired(ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Paired difference in accuracy of models, by the images that each is right on: over models, and over images."""
    means = [torch.tensor(right, dtype=torch.float64).mean(dim=0).tolist() for right in (ours, theirs)]
    over = {"images": to_json(over_images(*means, trainings=len(ours)))}
    if len(ours) > 1:
        over["models"] = to_json(over_seeds(*([sum(r) / len(r) for r in right] for right in (ours, theirs))))
    return over


def _timed_as(method: str, speedup: float) -> str:
    """The name of the timing that tells a method's speed: of queries it matters only whether they are located."""
    if method == "plain":
        return "plain"
    if method in CONTROLS or method not in get_args(QueryInit):
        kind = "located" if method == "regions" else method
    else:
        kind = "located" if method in ("located", "best") else "patchmerger"
    return f"{kind} {speedup:g}"
