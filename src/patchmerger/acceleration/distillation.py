"""Recover accuracy after a merger went into a trained model: a short training with the plain model as teacher."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.acceleration.distillation_task import DistillationTask
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data import Augmentation, ImageData, ImageSplits, Preprocessing, Transform
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.build import square_input
from patchmerger.runs.environment import default_precision, find_device
from patchmerger.runs.run_folder import RunFolder
from patchmerger.training.trainer import Stopwatch, make_trainer, train


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: ImageSplits,
    *,
    preprocessing: Preprocessing,
    epochs: float | None = None,
    steps: int | None = None,
    recovery: RecoverySettings = RecoverySettings(),
    labels: bool = True,
    augmentation: Augmentation | Transform = Augmentation(),
    workers: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a merged model in place to do what the plain one does.

    With a folder, the same call again goes on where an interrupted one stopped. Order, augmentation and randomness are
    functions of (seed, step), as in training.

    Args:
        student: The merged model, trained in place.
        teacher: The plain model; it is left as it was.
        data: Images; targets are not looked at where ``labels`` is false.
        preprocessing: How images are prepared for both models.
        epochs: Passes over the training images, also a part of one, such as 0.5; 1 if ``steps`` is not given either.
        steps: In its place the number of batches.
        recovery: How to train.
        labels: Whether the targets are labels; without them the teacher alone guides.
        augmentation: How training images are varied, for both models alike.
        workers: Processes that load images.
        seed: Fixes the order of the images and all randomness.
        out: A folder for checkpoints and logs; by default none are kept.
        progress: Show a progress bar, on a terminal.

    Returns:
        ``steps``, ``epochs``, ``seconds``, ``images_per_second`` and the ``history`` of the validation accuracy
        (without labels: of the agreement with the teacher).

    Raises:
        ValueError: Settings or images that do not fit, or a folder of another call; before any training.
        FloatingPointError: The loss is not finite.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as passing:
            return distill(
                student, teacher, data, preprocessing=preprocessing, epochs=epochs, steps=steps, recovery=recovery,
                labels=labels, augmentation=augmentation, workers=workers, seed=seed, out=Path(passing),
                progress=progress,
            )  # fmt: skip
    precision = recovery.precision or default_precision(device_of(recovery))
    recovery.weight_of_labels(labels)
    image_size = square_input(student)
    loader = ImageData(
        data, image_size=image_size, preprocessing=preprocessing, batch_size=recovery.batch_size, epochs=1, seed=seed,
        augmentation=augmentation, workers=workers,
    )  # fmt: skip
    total = steps_of(epochs, steps, loader.steps_per_epoch)
    loader.epochs = math.ceil(total / loader.steps_per_epoch)
    folder = RunFolder(
        out, {"recovery": recovery, "labels": labels, "steps": total, "seed": seed, "precision": precision}
    )
    stopwatch = Stopwatch()
    with _device_kept(teacher), eval_mode(teacher):
        task = DistillationTask(
            student, teacher, recovery, precision=precision, labels=labels, total_steps=total, seed=seed,
            steps_per_epoch=loader.steps_per_epoch, multi_label=data.multi_label, preprocessing=preprocessing,
        )  # fmt: skip
        trainer = make_trainer(task.settings, folder, stopwatch, progress=progress and sys.stdout.isatty())
        trainer.limit_train_batches = total
        trainer.val_check_interval = _validation_interval(total, loader)
        trainer.log_every_n_steps = min(10, total)  # type: ignore[attr-defined]
        folder.begin()
        with folder.exclusive():
            train(trainer, task, loader, folder)
    if task.ema is not None:
        averaged: Any = task.final_model
        student.load_state_dict(averaged.net.state_dict())
    student.eval()
    return {
        "steps": total,
        "epochs": total / loader.steps_per_epoch,
        "seconds": stopwatch.seconds,
        "images_per_second": stopwatch.images_per_second,
        "precision": precision,
        "history": task.history,
    }


def _validation_interval(total: int, loader: ImageData) -> int:
    """Steps between two validations: four in all or one an epoch, but no more batches to validate than to train on."""
    held = 0 if loader.splits.validation is None else len(loader.splits.validation)
    least = math.ceil(held / loader.batch_size)
    return min(total, loader.steps_per_epoch, max(math.ceil(total / 4), least))


def steps_of(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Batches of a training that is given in epochs or in batches.

    Raises:
        ValueError: Both are given, or one that is not above 0.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs ({epochs:g}) and steps ({steps}) are two lengths of the training: give one of them")
    if steps is not None and steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1")
    if epochs is not None and not epochs > 0:
        raise ValueError(f"epochs ({epochs:g}) must be above 0, such as 0.5 or 3")
    return steps if steps is not None else max(1, round((1.0 if epochs is None else epochs) * steps_per_epoch))


def device_of(recovery: RecoverySettings) -> torch.device:
    """The device that a recovery runs on."""
    return find_device("cpu" if recovery.accelerator == "cpu" else None)


@contextmanager
def _device_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is on the device that it was on."""
    device = next(model.parameters()).device
    try:
        yield
    finally:
        model.to(device)
