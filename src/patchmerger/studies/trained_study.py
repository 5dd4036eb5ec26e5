"""What studies of trained plain models share: cells kept in files, scores on the test images, the plain models' own."""

from __future__ import annotations

import copy
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.finished_work import FIXED_BY, TAKEN_FROM, FinishedWork
from patchmerger.runs.run_folder import RunFolder, default_folder, fingerprint
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.shared_work import SharedWork
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.speed.settings import TimingSettings
from patchmerger.studies.trained_models import TrainedModel
from patchmerger.studies.training_runs import WORK

BATCH = 250
"""Test images in a batch."""
_HELD_BYTES = 4 * 2**30  # prepared test images


class StudyCell(Protocol):
    """One model that a study makes of a plain one."""

    @property
    def name(self) -> str:
        """Its name, and that of its files."""

    @property
    def model(self) -> int:
        """The number of the plain model."""


CellT = TypeVar("CellT", bound=StudyCell)


def study_folder(
    kind: str, settings: Any, trained: Sequence[TrainedModel], out: Path | None, grid: Sequence[str]
) -> RunFolder:
    """The folder of a study, which the settings and the content of the plain models belong to.

    Without ``out`` it is runs/KIND-study-FINGERPRINT. The ``grid`` are the settings that list its cells.
    """
    recorded = {**to_json(settings), "models": [model.teacher.fingerprint for model in trained]}
    return RunFolder(out or default_folder(kind, "study", recorded), recorded, growing=grid)


class TrainedStudy(ABC, Generic[CellT]):
    """A grid of cells, each kept in a file of its own beside the predictions of its model.

    Processes share the cells and ``further_units``. As many ``workers`` prepare images as a model's own run had, by
    default.
    """

    GRID: ClassVar[Sequence[str]] = ("models", "rounds", "speed_batch_size")
    """The settings that no cell depends on: they list the cells, or say how speed is measured."""

    def __init__(
        self,
        folder: RunFolder,
        reuse: Path | None,
        trained: Sequence[TrainedModel],
        cells: Sequence[CellT],
        further_units: Sequence[str] = (),
        *,
        device: torch.device,
        workers: int | None = None,
        progress: bool,
    ) -> None:
        self.folder, self.path, self.reused = folder, folder.path, FinishedWork(reuse, folder.path)
        self.reused.refuse_other_study(folder.settings, self.GRID)
        self.trained, self.device, self.workers, self.progress = trained, device, workers, progress
        self.cells: Mapping[str, CellT] = {cell.name: cell for cell in cells}
        self.work = SharedWork(self.path / WORK, [*further_units, *self.cells], lambda unit: self.file(unit).exists())
        self._prepared: dict[Any, list[Tensor]] = {}

    @abstractmethod
    def evaluated(self, cell: CellT) -> tuple[Tensor, dict[str, Any]]:
        """Make the model of a cell, and evaluate it: its predictions (n,) of the test images, and what was found."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """What is known once all is done."""

    @abstractmethod
    def placed(self, cell: CellT) -> Any:
        """Where the model of a cell has fewer tokens, and how many, as JSON can hold it."""

    def evaluate_cells(self) -> None:
        """Make and evaluate every model that is not done, here or in what is reused."""
        for unit in self.work.take(list(self.cells)):
            cell, file = self.cells[unit], self.file(unit)
            described = to_json(cell)
            fixed_by = self.fixed_by(cell.model, described | {"model": None}, self.placed(cell))
            if self.taken_over(unit, fixed_by, tensors=True, **described):
                continue
            predictions, found = self.evaluated(cell)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file.with_suffix(".safetensors"), {"predictions": predictions})
            write_json(file, {**described, **found, FIXED_BY: fixed_by})
            self.say(f"{unit}: {100 * found['accuracy']:.2f}%, {100 * found['agreement']:.2f}% agree with the plain")

    def fixed_by(self, number: int, *given: Any) -> str:
        """The fingerprint of all that a result of a plain model depends on: model, images, settings, what is given."""
        model = self.trained[number]
        settings = {key: value for key, value in self.folder.settings.items() if key not in self.GRID}
        teacher = [model.teacher.fingerprint, model.teacher.preprocessing]
        return fingerprint([*teacher, model.run, model.images.fingerprint, settings, *given])

    def taken_over(self, unit: str, fixed_by: str, *, tensors: bool, **changed: Any) -> bool:
        """Whether a result, with ``tensors`` beside it or not, is in what is reused; it is copied then."""
        taken = self.reused.take_file(fixed_by, self.file(unit), tensors=tensors, **changed)
        if taken:
            self.say(f"{unit}: taken over from {self.reused.folder}")
        return taken

    def recovered(
        self, cell: CellT, student: nn.Module, recovery: RecoverySettings, *, shared_cache: Path | None = None
    ) -> dict[str, Any]:
        """Train the model of a cell, in place, with the plain one as teacher; what is left of it is its record."""
        model, out = self.trained[cell.model], self.path / cell.name
        record = distill(
            student, model.teacher.model, model.images, preprocessing=model.teacher.preprocessing, recovery=recovery,
            augmentation=model.augmentation, workers=self.workers_for(cell.model), seed=model.seed, out=out,
            shared_cache=shared_cache, progress=False,
        )  # fmt: skip
        shutil.rmtree(out)
        return record

    def finish(self, command: str | None) -> dict[str, Any]:
        """Write the results, unless another process has done so meanwhile."""
        with self.work.lock("results", timeout=-1):
            return self.folder.results or self.folder.finish({"command": command, **self.results()})

    def described(self) -> dict[str, Any]:
        """What was studied, on what, and what the plain models are."""
        first = self.trained[0]
        return {
            "settings": self.folder.settings,
            "models": [str(model.folder) for model in self.trained],
            "model": to_json(first.model),
            "image_size": first.image_size,
            "data": first.images.description,
            "plain": [self.plain(number) for number in range(len(self.trained))],
            "taken_over": {
                name: found[TAKEN_FROM] for name in self.cells if TAKEN_FROM in (found := read_json(self.file(name)))
            },
            "environment": environment(self.device),
            "folder": str(self.path),
        }

    def found_cells(self) -> list[dict[str, Any]]:
        """What was found of each cell, in their order."""
        return [read_json(self.file(name)) for name in self.cells]

    def groups(
        self, found: Sequence[dict[str, Any]], by: Sequence[str]
    ) -> dict[tuple[Any, ...], tuple[list[dict[str, Any]], list[Tensor]]]:
        """What was found of the cells that share these, one of each plain model, and which images each is right on."""
        groups: dict[tuple[Any, ...], tuple[list[dict[str, Any]], list[Tensor]]] = {}
        for cell, one in zip(self.cells.values(), found, strict=True):
            cells, right = groups.setdefault(tuple(one[name] for name in by), ([], []))
            cells.append(one)
            right.append(self.right(cell))
        return groups

    def plain(self, number: int) -> dict[str, Any]:
        """A plain model on the test images."""
        scores = self.plain_scores(number)
        found = compare_scores(scores, scores, self.trained[number].images.test.targets)
        return {"seed": self.trained[number].seed, **found}

    def compared(self, number: int, scores: Tensor) -> dict[str, Any]:
        """How scores of the test images compare with those of the plain model."""
        return compare_scores(scores, self.plain_scores(number), self.trained[number].images.test.targets)

    def plain_scores(self, number: int) -> Tensor:
        """Scores (n, C) of the test images by a plain model, computed once for all processes."""
        file = self.path / f"model-{number}" / "plain.safetensors"
        with self.work.lock(f"plain-{number}", timeout=-1):
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, {"scores": self.scores(number, self.trained[number].teacher.model)})
        return read_tensors(file)["scores"]

    def scores(self, number: int, net: nn.Module) -> Tensor:
        """Scores (n, C) of the test images of a plain model by ``net``, float32 on the CPU."""
        classifier = Classifier(copy.deepcopy(net).to(self.device))
        like = next(classifier.parameters())
        with eval_mode(classifier), torch.no_grad(), self.precision():
            return torch.cat([classifier(images.to(like)).float().cpu() for images in self.test_batches(number)])

    def precision(self) -> AbstractContextManager[Any]:
        """What test images are scored under."""
        return nullcontext()

    def test_batches(self, number: int) -> Iterable[Tensor]:
        """The prepared test images, which stay in memory where they are not too many; models mostly share them."""
        model, test = self.trained[number], self.trained[number].images.test
        prepared = model.teacher.batches(test, batch_size=BATCH, workers=self.workers_for(number))
        if len(test) * 3 * model.image_size**2 * 4 > _HELD_BYTES:
            return prepared
        which = (str(model.data), hash(test.targets.numpy().tobytes()), model.teacher.preprocessing, model.image_size)
        if which not in self._prepared:
            self._prepared[which] = list(prepared)
        return self._prepared[which]

    def workers_for(self, number: int) -> int | None:
        """Processes that prepare the images of a plain model."""
        return self.trained[number].data.workers if self.workers is None else self.workers

    def calibration_images(self, number: int, count: int) -> Tensor:
        """Prepared training images of a plain model, which queries are computed from."""
        model = self.trained[number]
        return model.teacher.prepared(model.images.train, count, seed=model.seed).to(self.device)

    def right_of_plain(self) -> list[Tensor]:
        """Of each plain model, for each test image whether it is right (0 or 1)."""
        return [self._right(number, self.plain_scores(number).argmax(dim=1)) for number in range(len(self.trained))]

    def right(self, cell: CellT) -> Tensor:
        """For each test image whether the model of a cell is right (0 or 1)."""
        file = self.file(cell.name).with_suffix(".safetensors")
        return self._right(cell.model, read_tensors(file)["predictions"])

    def timing(self, batch_size: int, rounds: int) -> TimingSettings:
        """How the speed of the models is measured."""
        precision: Any = "bf16" if self.device.type == "cuda" else "float32"
        return TimingSettings(batch_size, rounds=rounds, device=str(self.device), precision=precision)

    def file(self, unit: str) -> Path:
        """Where it is kept what was found of a cell, or of another unit."""
        return self.path / f"{unit}.json"

    def say(self, text: str) -> None:
        """Say something on standard error."""
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    def _right(self, number: int, predictions: Tensor) -> Tensor:
        return (predictions == self.trained[number].images.test.targets).double()
