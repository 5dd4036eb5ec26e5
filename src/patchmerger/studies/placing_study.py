"""Fewer tokens by placing them: accuracy against their number for samplers, mergers, both, and the oracle."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from patchmerger.acceleration.query_initialisation import calibrate
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import QueryInit
from patchmerger.costs.counting import flops_of
from patchmerger.hosts import find_host
from patchmerger.insertion.inserting import insert
from patchmerger.placing.in_model import place
from patchmerger.placing.oracle import WARNING, OraclePlacement, spot_oracle
from patchmerger.placing.settings import Sampler
from patchmerger.presets import preset
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import mean_sd, over_images, over_seeds
from patchmerger.speed.measurement import measure
from patchmerger.studies.placing_budgets import Budget, budget_of
from patchmerger.studies.trained_models import TrainedModel, trained_models
from patchmerger.studies.trained_settings import MERGING_METHODS, PlacingStudySettings
from patchmerger.studies.trained_study import BATCH, TrainedStudy, study_folder

_CALIBRATION_STEPS = 100  # a third of the usual: these mergers are not trained


def place_study(
    settings: PlacingStudySettings,
    *,
    out: Path | None = None,
    reuse: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Place fewer and fewer tokens in trained plain models, and compare what remains of their accuracy.

    Every method is evaluated without training, and some after a short fine-tuning with the plain model as teacher, all
    alike. The oracle, which uses the labels of the test images that it sees, stands beside them. The same call again
    resumes an interrupted study; in a second process it shares the work.

    Args:
        settings: What is studied.
        out: The folder; runs/place-study-FINGERPRINT if not given.
        reuse: The folder of an earlier study: what is finished there under the same settings is copied, not made
            again, so that a study can grow by methods, fractions and models.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Models in which tokens cannot be placed, a folder of another study, or one to ``reuse`` of other
            settings; before any training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    trained = trained_models(settings.models, settings.test_images)
    folder = study_folder("place", settings, trained, out, _Study.GRID)
    if (known := folder.results) is not None:
        return known
    budgets = {fraction: budget_of(trained[0].teacher.model, fraction, settings) for fraction in settings.fractions}
    study = _Study(settings, trained, budgets, folder, reuse, progress)
    folder.begin()
    study.evaluate_cells()
    return study.finish(command)


@dataclass(frozen=True)
class Cell:
    """The plain model of this number with fewer tokens, a fraction of its patches, fine-tuned or not."""

    model: int
    method: str
    fraction: float
    fine_tuned: bool

    @property
    def name(self) -> str:
        """Its name, and that of its files."""
        trained = "fine-tuned" if self.fine_tuned else "untrained"
        return f"model-{self.model}/{self.fraction:g}-{self.method}-{trained}"


def cells_of(settings: PlacingStudySettings, budgets: dict[float, Budget]) -> list[Cell]:
    """All cells, without mergers that exceed a budget, and without learned positions before they have learned."""
    found = []
    for model, method, fraction, fine_tuned in product(
        range(len(settings.models)), settings.methods, settings.fractions, (False, True)
    ):
        within = method not in MERGING_METHODS or method in budgets[fraction].merges
        untrained = method != "learned" or "grid" not in settings.methods  # where they are those of "grid"
        if within and (method in settings.fine_tuned if fine_tuned else untrained):
            found.append(Cell(model, method, fraction, fine_tuned))
    return found


class _Study(TrainedStudy[Cell]):
    """The cells of a study."""

    GRID = (*TrainedStudy.GRID, "methods", "fractions", "fine_tuned", "workers")

    def __init__(
        self,
        settings: PlacingStudySettings,
        trained: Sequence[TrainedModel],
        budgets: dict[float, Budget],
        folder: RunFolder,
        reuse: Path | None,
        progress: bool,
    ) -> None:
        self.settings, self.budgets = settings, budgets
        super().__init__(
            folder, reuse, trained, cells_of(settings, budgets),
            device=device_of(settings.recovery), workers=settings.workers, progress=progress,
        )  # fmt: skip

    def results(self) -> dict[str, Any]:
        """What is known once all is done, with the interleaved speed of the models."""
        found = self.found_cells()
        return {
            "study": "place",
            **self.described(),
            "plain_flops": flops_of(self.trained[0].teacher.model),
            "budgets": {f"{fraction:g}": to_json(budget) for fraction, budget in self.budgets.items()},
            "cells": found,
            "curves": self._curves(found),
            "oracle_warning": WARNING,
            "speed": self._speed(),
        }

    def placed(self, cell: Cell) -> Any:
        """How many tokens are placed, and where they are merged."""
        budget = self.budgets[cell.fraction]
        return [budget.num_tokens, budget.merges.get(cell.method)]

    def evaluated(self, cell: Cell) -> tuple[Tensor, dict[str, Any]]:
        """Make the model, train it if that is asked for, and evaluate it on the test images."""
        settings, student = self.settings, self.student(cell)
        trained: dict[str, Any] = {"steps": 0, "seconds": 0.0}
        if cell.fine_tuned:
            merger_first = settings.recovery.merger_first if cell.method in MERGING_METHODS else 0.0
            recovery = replace(settings.recovery, scope="all", epochs=settings.epochs, merger_first=merger_first)
            trained = self.recovered(cell, student, recovery)
        scores = self.scores(cell.model, student)
        return scores.argmax(dim=1), {
            **self.compared(cell.model, scores),
            "flops": flops_of(student),
            "steps": trained["steps"],
            "seconds": trained["seconds"],
            "oracle": self._oracle(student, cell.model) if cell.method == settings.sampler else None,
        }

    def student(self, cell: Cell) -> nn.Module:
        """The model with fewer tokens, before any training."""
        model, budget = self.trained[cell.model], self.budgets[cell.fraction]
        net = copy.deepcopy(model.teacher.model)
        if cell.method not in MERGING_METHODS:
            return place(net, budget.num_tokens, cast(Sampler, cell.method), seed=model.seed)
        merge = budget.merges[cell.method]
        if cell.method == "placed-merger":
            place(net, merge.num_placed, self.settings.sampler, seed=model.seed)
        queries = preset("located" if cell.fine_tuned else "default", find_host(net).dim)
        insert(net, merge.num_tokens, merge.after, **queries)
        images = self.calibration_images(cell.model, self.settings.calibration_images)
        method: QueryInit = "located" if cell.fine_tuned else "reconstruction"
        calibrate(net.to(self.device), images, method=method, steps=_CALIBRATION_STEPS, seed=model.seed)
        return net.cpu()

    def _oracle(self, student: nn.Module, number: int) -> dict[str, Any] | None:
        """What positions fitted to each test image by its label come to."""
        if self.settings.oracle_images == 0:
            return None
        found: list[OraclePlacement] = []
        targets, left = self.trained[number].images.test.targets.to(self.device), self.settings.oracle_images
        student.to(self.device)
        for images, labels in zip(self.test_batches(number), torch.split(targets, BATCH), strict=True):
            seen = images[:left].to(self.device)
            with self.precision():
                found.append(spot_oracle(student, seen, labels[:left], steps=self.settings.oracle_steps))
            left -= len(seen)
            if left == 0:
                break
        right, before = (
            torch.cat([getattr(f, name) for f in found]).float() for name in ("correct", "initially_correct")
        )
        return {"images": len(right), "accuracy": float(right.mean()), "initial_accuracy": float(before.mean())}

    def plain(self, number: int) -> dict[str, Any]:
        """A plain model on the test images, and on those that the oracle sees."""
        found, seen = super().plain(number), self.settings.oracle_images
        on_oracle = float(self.right_of_plain()[number][:seen].mean()) if seen else None
        return {**found, "oracle_images_accuracy": on_oracle}

    def precision(self) -> AbstractContextManager[Any]:
        """bfloat16 where the device is made for it."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else super().precision()

    def _curves(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over the models of each method, share of the patches and training.

        ``difference`` is to the plain model, ``ahead`` to the first method with the same share and training; both are
        paired, over the models where there are several, else over the images.
        """
        plain, groups = self.right_of_plain(), self.groups(found, ("method", "fraction", "fine_tuned"))
        curves = []
        for (method, fraction, fine_tuned), (cells, ours) in groups.items():
            mean, sd = mean_sd([cell["accuracy"] for cell in cells])
            _, first = groups.get((self.settings.methods[0], fraction, fine_tuned), (None, None))
            oracles = [cell["oracle"] for cell in cells if cell["oracle"] is not None]
            curves.append({
                "method": method, "fraction": fraction, "fine_tuned": fine_tuned,
                "num_tokens": self.budgets[fraction].num_tokens, "flops": cells[0]["flops"], "accuracy": mean,
                "sd": sd if len(cells) > 1 else None, "agreement": mean_sd([cell["agreement"] for cell in cells])[0],
                "difference": _paired(ours, plain),
                "ahead": None if first is None or first is ours else _paired(ours, first),
                "oracle": None if not oracles else mean_sd([o["accuracy"] for o in oracles])[0],
                "oracle_initial": None if not oracles else mean_sd([o["initial_accuracy"] for o in oracles])[0],
            })  # fmt: skip
        return curves

    def _speed(self) -> dict[str, Any] | None:
        """Of each budget the placed tokens and the mergers, interleaved with the plain model."""
        if self.settings.rounds == 0:
            return None
        net = self.trained[0].teacher.model
        models: dict[str, nn.Module] = {"plain": net}
        for fraction, budget in self.budgets.items():
            models[f"{fraction:g}-{self.settings.sampler}"] = place(
                copy.deepcopy(net), budget.num_tokens, self.settings.sampler
            )
            for name, merge in budget.merges.items():
                merged = copy.deepcopy(net)
                if name == "placed-merger":
                    place(merged, merge.num_placed, self.settings.sampler)
                models[f"{fraction:g}-{name}"] = insert(merged, merge.num_tokens, merge.after)
        timing = self.timing(self.settings.speed_batch_size, self.settings.rounds)
        return measure(models, timing).as_dict()


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, Any]:
    """The difference in accuracy, over the models where there are several, else over the images."""
    if len(ours) > 1:
        difference = over_seeds(*([float(right.mean()) for right in which] for which in (ours, theirs)))
    else:
        difference = over_images(ours[0].tolist(), theirs[0].tolist())
    return cast(dict[str, Any], to_json(difference))
