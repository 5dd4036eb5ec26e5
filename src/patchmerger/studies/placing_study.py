"""Fewer tokens by placing them: accuracy against their number for samplers, mergers, both, and the oracle."""

from __future__ import annotations

import copy
import shutil
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.image_batches import calibration_batch, normalized_batches
from patchmerger.acceleration.query_initialisation import calibrate
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import QueryInit
from patchmerger.costs.counting import count_parts, on_meta
from patchmerger.costs.placements import PlacementCosts
from patchmerger.costs.planning import meeting
from patchmerger.hosts import find_host
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.modes import eval_mode
from patchmerger.placing.in_model import place
from patchmerger.placing.oracle import WARNING, spot_oracle
from patchmerger.placing.settings import Sampler
from patchmerger.presets import preset
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.run_folder import RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.shared_work import SharedWork
from patchmerger.runs.statistics import mean_sd, over_images, over_seeds
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings
from patchmerger.studies.settings import MERGING_METHODS, PlacingStudySettings
from patchmerger.studies.trained_models import TrainedModel, trained_models
from patchmerger.studies.training_runs import WORK, finished

_BATCH = 500
_CALIBRATION_STEPS = 100  # a third of the usual: these mergers are not trained
_HELD_BYTES = 4 * 2**30  # test images that stay prepared, so that each model need not wait for them


def place_study(
    settings: PlacingStudySettings, *, out: Path | None = None, command: str | None = None, progress: bool = True
) -> dict[str, Any]:
    """Place fewer and fewer tokens in trained plain models, and compare what remains of their accuracy.

    Every method is evaluated without training, and some after a short fine-tuning with the plain model as teacher, all
    alike. The oracle, which uses the labels of the test images that it sees, stands beside them. The same call again
    resumes an interrupted study; in a second process it shares the work.

    Args:
        settings: What is studied.
        out: The folder; runs/place-study-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is done.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Models in which tokens cannot be placed, or a folder of another study; before any training.
        FileNotFoundError: A folder that is none of a finished run.
    """
    trained = trained_models(settings.models)
    recorded = {**to_json(settings), "models": [t.teacher.found.fingerprint for t in trained]}
    folder = RunFolder(out or default_folder("place", "study", recorded), recorded)
    if (known := finished(folder)) is not None:
        return known
    budgets = {fraction: budget_of(trained[0].teacher.net, fraction, settings) for fraction in settings.fractions}
    folder.begin()
    study = _Study(settings, trained, budgets, folder, progress)
    study.evaluate_all()
    with study.work.lock("results", timeout=-1):  # another process may have finished meanwhile
        return finished(folder) or folder.finish({"command": command, **study.results()})


@dataclass(frozen=True)
class Merge:
    """Where tokens are merged to stay within a budget.

    Attributes:
        num_placed: Tokens that come in: placed ones, or the patches.
        after: The block that they are merged after.
        num_tokens: Tokens that go on.
    """

    num_placed: int
    after: int
    num_tokens: int


@dataclass(frozen=True)
class Budget:
    """What a share of the patches comes to.

    Attributes:
        num_tokens: So many placed tokens.
        flops: FLOPs of the model with them, which mergers may use too.
        merges: Where "merger" and "placed-merger" merge; without what cannot stay within the FLOPs.
    """

    num_tokens: int
    flops: int
    merges: dict[str, Merge]


def budget_of(net: nn.Module, fraction: float, settings: PlacingStudySettings) -> Budget:
    """The budget of a share of the patches, and how mergers stay within it.

    A merger keeps at least a quarter as many tokens. "merger" stands as late as that allows; "placed-merger" stands
    halfway, as in the paper, and what it saves goes into more placed tokens.
    """
    host = find_host(net)
    patches = cast(int, host.num_patches)
    count = max(1, round(fraction * patches))
    empty = on_meta(net)

    def placed_flops(placed: int, merged: tuple[int, int] | None = None) -> int:
        model = place(copy.deepcopy(empty), placed, "grid")
        return sum(part.flops for part in count_parts(model if merged is None else insert(model, *merged)))

    flops = placed_flops(count)
    merges: dict[str, Merge] = {}
    if count == patches:
        return Budget(count, flops, merges)
    kept = max(1, count // 4)
    if "merger" in settings.methods:
        try:
            found = meeting(
                PlacementCosts(empty, None, None), type(net).__name__, 1, range(kept, count), gflops=flops / 1e9
            )
            merges["merger"] = Merge(patches, found[0].after[0], found[0].num_tokens[0])
        except ValueError:  # fewer FLOPs than one merger leaves
            pass
    if "placed-merger" in settings.methods and count > kept:
        after = len(host.blocks) // 2
        placed = bisect_right(range(count, patches + 1), flops, key=lambda n: placed_flops(n, (kept, after)))
        if placed:
            merges["placed-merger"] = Merge(count + placed - 1, after, kept)
    return Budget(count, flops, merges)


def _flops(net: nn.Module) -> int:
    """FLOPs of one image."""
    return sum(part.flops for part in count_parts(on_meta(net)))


@dataclass(frozen=True)
class Cell:
    """One model with fewer tokens.

    Attributes:
        model: Its number among the plain models.
        method: How it has fewer tokens.
        fraction: The share of the patches that gives the budget.
        fine_tuned: Whether it was trained afterwards.
    """

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


class _Study:
    """The cells of a study, each kept in a file of its own."""

    def __init__(
        self,
        settings: PlacingStudySettings,
        trained: Sequence[TrainedModel],
        budgets: dict[float, Budget],
        folder: RunFolder,
        progress: bool,
    ) -> None:
        self.settings, self.trained, self.budgets = settings, trained, budgets
        self.folder, self.path, self.progress = folder, folder.path, progress
        self.device = device_of(settings.recovery)
        self.cells = {cell.name: cell for cell in cells_of(settings, budgets)}
        self.work = SharedWork(self.path / WORK, list(self.cells), lambda unit: self._file(unit).exists())
        self.tests = [_TestImages(model, settings.workers, self.device) for model in trained]

    def evaluate_all(self) -> None:
        """Train and evaluate every cell that is not done."""
        for unit in self.work.take():
            predictions, found = self._evaluated(self.cells[unit])
            write_tensors(self._file(unit).with_suffix(".safetensors"), {"predictions": predictions})
            write_json(self._file(unit), {**to_json(self.cells[unit]), **found})
            oracle = "" if found["oracle"] is None else f", oracle {100 * found['oracle']['accuracy']:.2f}%"
            self._say(f"{unit}: {100 * found['accuracy']:.2f}%{oracle}")

    def results(self) -> dict[str, Any]:
        """What is known once all is done, with the interleaved speed of the models."""
        first = self.trained[0]
        cells = {name: read_json(self._file(name)) for name in self.cells}
        return {
            "study": "place",
            "settings": self.folder.settings,
            "models": [str(path) for path in self.settings.models],
            "model": to_json(first.model),
            "image_size": first.image_size,
            "data": first.images.description,
            "plain": [self._plain(number) for number in range(len(self.trained))],
            "plain_flops": _flops(first.teacher.net),
            "budgets": {f"{fraction:g}": to_json(budget) for fraction, budget in self.budgets.items()},
            "cells": list(cells.values()),
            "curves": self._curves(cells),
            "oracle_warning": WARNING,
            "speed": self._speed(),
            "environment": environment(self.device),
            "folder": str(self.path),
        }

    def _evaluated(self, cell: Cell) -> tuple[Tensor, dict[str, Any]]:
        """Make the model, train it if that is asked for, and evaluate it on the test images."""
        model, settings = self.trained[cell.model], self.settings
        student = self.student(cell)
        trained: dict[str, Any] = {"steps": 0, "seconds": 0.0}
        if cell.fine_tuned:
            out = self.path / cell.name
            merger_first = settings.recovery.merger_first if cell.method in MERGING_METHODS else 0.0
            trained = distill(
                student, model.teacher.net, model.images, preprocessing=model.teacher.preprocessing,
                recovery=replace(settings.recovery, scope="all", epochs=settings.epochs, merger_first=merger_first),
                augmentation=model.augmentation, workers=self._workers(cell.model), seed=model.seed, out=out,
                progress=False,
            )  # fmt: skip
            shutil.rmtree(out)
        tests = self.tests[cell.model]
        scores = tests.scores(student)
        return scores.argmax(dim=1), {
            **compare_scores(scores, self._teacher_scores(cell.model), model.images.test.targets),
            "flops": _flops(student),
            "steps": trained["steps"],
            "seconds": trained["seconds"],
            "oracle": self._oracle(student, tests) if cell.method == settings.sampler else None,
        }

    def student(self, cell: Cell) -> nn.Module:
        """The model with fewer tokens, before any training."""
        model, budget = self.trained[cell.model], self.budgets[cell.fraction]
        net = copy.deepcopy(model.teacher.net)
        if cell.method not in MERGING_METHODS:
            return place(net, budget.num_tokens, cast(Sampler, cell.method), seed=model.seed)
        merge = budget.merges[cell.method]
        if cell.method == "placed-merger":
            place(net, merge.num_placed, self.settings.sampler, seed=model.seed)
        located = preset("located", find_host(net).dim) if cell.fine_tuned else {}
        insert(net, merge.num_tokens, merge.after, **located)
        images = calibration_batch(
            model.images.train, model.teacher.preprocessing, image_size=model.image_size,
            count=self.settings.calibration_images, seed=model.seed,
        )  # fmt: skip
        method: QueryInit = "located" if cell.fine_tuned else "reconstruction"
        calibrate(net.to(self.device), images.to(self.device), method=method, steps=_CALIBRATION_STEPS, seed=model.seed)
        return net.cpu()

    def _oracle(self, student: nn.Module, tests: _TestImages) -> dict[str, Any] | None:
        """What positions fitted to each test image by its label come to."""
        count, found = self.settings.oracle_images, []
        if count == 0:
            return None
        student.to(self.device)
        for images, targets in tests.first(count):
            with tests.precision():
                found.append(spot_oracle(student, images, targets, steps=self.settings.oracle_steps))
        right, before = (
            torch.cat([getattr(f, name) for f in found]).float() for name in ("correct", "initially_correct")
        )
        return {"images": len(right), "accuracy": float(right.mean()), "initial_accuracy": float(before.mean())}

    def _workers(self, number: int) -> int | None:
        return self.trained[number].data.workers if self.settings.workers is None else self.settings.workers

    def _teacher_scores(self, number: int) -> Tensor:
        file = self.path / f"model-{number}" / "plain.safetensors"
        with self.work.lock(f"plain-{number}", timeout=-1):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(
                    file, {"scores": self.tests[number].scores(copy.deepcopy(self.trained[number].teacher.net))}
                )
        return read_tensors(file)["scores"]

    def _plain(self, number: int) -> dict[str, Any]:
        """The plain model on the test images, and on those that the oracle sees."""
        scores, targets = self._teacher_scores(number), self.trained[number].images.test.targets
        seen = slice(0, self.settings.oracle_images)
        on_oracle = (
            float((scores.argmax(dim=1) == targets)[seen].float().mean()) if self.settings.oracle_images else None
        )
        found = compare_scores(scores, scores, targets)
        return {"seed": self.trained[number].seed, **found, "oracle_images_accuracy": on_oracle}

    def _curves(self, cells: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """Means over the models of each method, share of the patches and training.

        ``difference`` is to the plain model, ``ahead`` to the first method with the same share and training; both are
        paired, over the models where there are several, else over the images.
        """
        plain = [self._right(n, self._teacher_scores(n).argmax(dim=1)) for n in range(len(self.trained))]
        groups: dict[tuple[str, float, bool], list[str]] = {}
        for name, cell in self.cells.items():
            groups.setdefault((cell.method, cell.fraction, cell.fine_tuned), []).append(name)
        right = {key: [self._right_of(name) for name in names] for key, names in groups.items()}
        curves = []
        for (method, fraction, fine_tuned), names in groups.items():
            same = [cells[name] for name in names]
            mean, sd = mean_sd([cell["accuracy"] for cell in same])
            first = right.get((self.settings.methods[0], fraction, fine_tuned))
            ours = right[method, fraction, fine_tuned]
            oracles = [cell["oracle"] for cell in same if cell["oracle"] is not None]
            curves.append({
                "method": method, "fraction": fraction, "fine_tuned": fine_tuned,
                "num_tokens": self.budgets[fraction].num_tokens, "flops": same[0]["flops"], "accuracy": mean,
                "sd": sd if len(same) > 1 else None, "agreement": mean_sd([cell["agreement"] for cell in same])[0],
                "difference": _paired(ours, plain),
                "ahead": None if first is None or first is ours else _paired(ours, first),
                "oracle": None if not oracles else mean_sd([o["accuracy"] for o in oracles])[0],
                "oracle_initial": None if not oracles else mean_sd([o["initial_accuracy"] for o in oracles])[0],
            })  # fmt: skip
        return curves

    def _right_of(self, name: str) -> Tensor:
        predictions = read_tensors(self._file(name).with_suffix(".safetensors"))["predictions"]
        return self._right(self.cells[name].model, predictions)

    def _right(self, number: int, predictions: Tensor) -> Tensor:
        return (predictions == self.trained[number].images.test.targets).float()

    def _speed(self) -> dict[str, Any] | None:
        """Of each budget the placed tokens and the mergers, interleaved with the plain model."""
        if self.settings.rounds == 0:
            return None
        net = self.trained[0].teacher.net
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
        timing = TimingSettings(
            self.settings.speed_batch_size, rounds=self.settings.rounds, device=str(self.device),
            precision="bf16" if self.device.type == "cuda" else "float32",
        )  # fmt: skip
        return measure(models, timing).as_dict()

    def _file(self, unit: str) -> Path:
        return self.path / f"{unit}.json"

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)


class _TestImages:
    """The test images of a model, prepared once where they fit into memory."""

    def __init__(self, model: TrainedModel, workers: int | None, device: torch.device) -> None:
        self.model, self.device = model, device
        self.workers = model.data.workers if workers is None else workers
        self._held: Tensor | None = None

    def scores(self, student: nn.Module) -> Tensor:
        """(n, C), float32 on the CPU."""
        net = student.to(self.device)
        with eval_mode(net), torch.no_grad(), self.precision():
            return torch.cat([net(images).float().cpu() for images in self._batches()])

    def first(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first ``count`` of them with their labels, in batches."""
        targets, done = self.model.images.test.targets, 0
        for images in self._batches():
            taken = images[: count - done]
            yield taken, targets[done : done + len(taken)].to(self.device)
            done += len(taken)
            if done >= count:
                return

    def precision(self) -> Any:
        """bfloat16 where the device is made for it."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _batches(self) -> Iterator[Tensor]:
        model = self.model
        if len(model.images.test) * 3 * model.image_size**2 * 4 > _HELD_BYTES:
            yield from (batch.to(self.device) for batch in self._prepared())
            return
        if self._held is None:
            self._held = torch.cat(list(self._prepared())).to(self.device)
        yield from self._held.split(_BATCH)  # type: ignore[no-untyped-call]

    def _prepared(self) -> Iterator[Tensor]:
        model = self.model
        return normalized_batches(
            model.images.test, model.teacher.preprocessing, model.image_size, batch_size=_BATCH, workers=self.workers
        )


def _paired(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, Any]:
    """The difference in accuracy, over the models where there are several, else over the images."""
    if len(ours) > 1:
        difference = over_seeds(*([float(right.mean()) for right in which] for which in (ours, theirs)))
    else:
        difference = over_images(ours[0].tolist(), theirs[0].tolist())
    return cast(dict[str, Any], to_json(difference))
