"""What a recovery is of, and one phase of it: trained, resumed, and the better of before and after kept."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.acceleration.distillation_task import DistillationTask
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data.images import ImageSet
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import Augmentation
from patchmerger.data.splits import ImageSplits
from patchmerger.data.transforms import Transform
from patchmerger.hosts.example_inputs import square_input
from patchmerger.mechanism.modes import learning_mode
from patchmerger.models.finding import weights_fingerprint
from patchmerger.runs.environment import clock, default_precision, find_device
from patchmerger.runs.files import made_once
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.training.attention import short_attention
from patchmerger.training.settings import Precision
from patchmerger.training.trainer import Stopwatch, check_weights, make_trainer, train

_WATCHED = 1000
_WEIGHTS_FILE = "student.safetensors"


@dataclass(frozen=True)
class RecoveryJob:
    """What a recovery is of; the fields are the arguments of :func:`distill`."""

    student: nn.Module
    teacher: nn.Module
    data: ImageSplits
    preprocessing: Preprocessing
    recovery: RecoverySettings
    labels: bool
    augmentation: Augmentation | Transform
    workers: int | None
    seed: int
    out: Path
    progress: bool
    shared_cache: Path | None = None

    def __post_init__(self) -> None:
        if len(self.data.train) < self.recovery.batch_size:
            raise too_few_images(self.recovery, len(self.data.train))
        check_weights(self.student, self.precision, "student")

    @cached_property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return square_input(self.student)

    @cached_property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return device_of(self.recovery)

    @cached_property
    def precision(self) -> Precision:
        """In Lightning's words."""
        return self.recovery.precision or default_precision(self.device)

    @cached_property
    def watched(self) -> ImageSet:
        """A fixed sample of held-out images, or of training images where none are held out for validation."""
        held = self.data.train if self.data.validation is None else self.data.validation
        return held.drawn(_WATCHED, self.seed)

    def say(self, text: str) -> None:
        """A line of progress."""
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    def task(self, student: nn.Module, steps: int, steps_per_epoch: int) -> DistillationTask:
        """The training task of a whole student."""
        return DistillationTask(student, self.teacher, self.recovery, **self.task_arguments(steps, steps_per_epoch))

    def task_arguments(self, steps: int, steps_per_epoch: int) -> dict[str, Any]:
        """What every task is given."""
        return {
            "precision": self.precision, "labels": self.labels, "total_steps": steps, "seed": self.seed,
            "steps_per_epoch": steps_per_epoch, "multi_label": self.data.multi_label,
            "preprocessing": self.preprocessing,
        }  # fmt: skip

    def phase(self, name: str, steps: int, **further: Any) -> RunFolder:
        """The folder of a phase; begun. Another teacher, student or data is another call."""
        own = self.augmentation
        folder = RunFolder(
            self.out / name,
            {"recovery": self.recovery, "labels": self.labels, "steps": steps, "seed": self.seed,
             "precision": self.precision, "teacher": weights_fingerprint(self.teacher),
             "student": {name: tuple(p.shape) for name, p in self.student.state_dict().items()},
             "data": self.data.fingerprint, "preprocessing": self.preprocessing, "image_size": self.image_size,
             "augmentation": own if isinstance(own, Augmentation) else type(own).__name__, **further},
        )  # fmt: skip
        folder.begin()
        return folder

    def length(self, name: str, make: Any) -> dict[str, Any]:
        """How long a phase is; found once, and the same after an interruption."""
        found: dict[str, Any] = made_once(self.out / f"{name}-length.json", make)
        return found


def too_few_images(recovery: RecoverySettings, images: int) -> ValueError:
    """What is wrong where there are fewer training images than in a batch."""
    return ValueError(
        f"recovery.batch_size ({recovery.batch_size}) is more than the {images} training images: take a smaller one"
    )


def device_of(recovery: RecoverySettings) -> torch.device:
    """The device that a recovery runs on."""
    return find_device("cpu" if recovery.accelerator == "cpu" else None)


def train_phase(
    task: DistillationTask,
    loader: Any,
    folder: RunFolder,
    job: RecoveryJob,
    *,
    steps: int,
    watched: Any,
    watched_images: int | None = None,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``job.student`` by a task for so many steps, or resume it, and keep the better of before and after.

    Both are compared on ``watched``, of ``watched_images`` images; all of ``job.watched`` by default. Checkpoints, logs
    and the record of the phase, which comes back with what was ``kept`` for it, go into ``folder``.
    """
    student, weights = job.student, folder.path / _WEIGHTS_FILE
    learning_mode(student)
    if folder.results is not None and weights.exists():
        student.load_state_dict(read_tensors(weights), strict=False)
        return folder.results
    stopwatch, images = Stopwatch(), watched_images or len(job.watched)
    before_state = {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}
    before = float(made_once(folder.path / "before.json", lambda: task.to(job.device).watch(watched())))
    trainer = make_trainer(task.settings, folder, stopwatch, progress=job.progress and sys.stdout.isatty())
    trainer.limit_train_batches = steps
    trainer.val_check_interval = min(steps, loader.steps_per_epoch, math.ceil(steps / 4))
    trainer.log_every_n_steps = min(10, steps)  # type: ignore[attr-defined]
    train(trainer, task, loader, folder)
    if task.ema is not None:
        averaged: Any = task.final_model
        student.load_state_dict(averaged.net.state_dict())
    after = task.to(job.device).watch(watched())
    if after < before:
        student.load_state_dict(before_state)
        job.say(
            f"    it ended at {100 * after:.2f}% of {images:,} held-out images, below the "
            f"{100 * before:.2f}% that it began with, which is kept"
        )
    write_tensors(weights, student.state_dict())
    return folder.finish(
        {
            "steps": steps,
            "seconds": stopwatch.seconds,
            "images_per_second": stopwatch.images_per_second,
            "watched": {"images": images, "before": before, "after": after},
            "result": "recovered" if after >= before else "initial",
            "kept": kept,
            "history": task.history,
        }
    )


def seconds_per_step(task: DistillationTask, batch: Iterable[Any], job: RecoveryJob) -> float:
    """Seconds that a step takes here, by two of them after a first one; the task's student changes."""
    given = [part.to(job.device) for part in batch]
    optimizer = task.to(job.device).configure_optimizers()["optimizer"]
    mixed = torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bf16-mixed")
    now, taken = clock(job.device), []
    for _ in range(3):
        begin = now()
        optimizer.zero_grad()
        with short_attention():
            with mixed:
                loss = task.distillation_loss(given)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        taken.append(now() - begin)
    return sum(taken[1:]) / 2
