"""Recover accuracy after a merger went into a trained model: a short training with the plain model as teacher."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.acceleration.pairs import check_pair
from patchmerger.acceleration.rear_recovery import recover_rear
from patchmerger.acceleration.recovery_job import RecoveryJob, seconds_per_step, train_phase
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data.loading import DataLike, load_images, name_of
from patchmerger.data.module import ImageData
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import Augmentation
from patchmerger.data.splits import ImageSplits
from patchmerger.data.transforms import Transform
from patchmerger.hub.saved_model import is_multi_label
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.classifier import Classifier, check_channels
from patchmerger.training.devices import check_accelerator

_SHARE_OF_ALL = 0.2  # of a recovery of the rear, then all


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: DataLike,
    *,
    preprocessing: Preprocessing,
    recovery: RecoverySettings = RecoverySettings(),
    labels: bool = True,
    augmentation: Augmentation | Transform = Augmentation(),
    workers: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    shared_cache: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a merged model in place to do what the plain one does.

    With a folder, the same call again resumes an interrupted one. Order, augmentation and randomness are functions of
    (seed, step), as in training; dropout and stochastic depth are off, as the teacher has none. Where the result is
    worse on held-out images than what it began with, that is kept.

    Args:
        student: The merged model, trained in place.
        teacher: The plain model; it is left as it was.
        data: Images, as ``load_images`` takes them; targets are not looked at where ``labels`` is false.
        preprocessing: How images are prepared for both models.
        recovery: What to train, how, and for how long.
        labels: Whether the targets are labels; without them the teacher alone guides.
        augmentation: How training images are varied, for both models alike; what it leaves open is as for training.
        workers: Processes that load images.
        seed: Fixes the order of the images and all randomness.
        out: A folder for kept tokens, checkpoints and logs; by default none are kept.
        shared_cache: A folder for kept tokens that several recoveries share, also in several processes; it stays.
        progress: Say what is done, with bars on a terminal.

    Returns:
        ``steps``, ``epochs`` (passes over as many images as there are), ``seconds``, ``precision``, and ``phases``:
        one record for the rear, for all, or for both, with ``watched``, the metric on held-out images (accuracy, or
        agreement without labels) before and after, the ``result`` that was taken, "recovered" or "initial", and the
        ``history``.

    Raises:
        ValueError: Settings, images or a teacher that do not fit, or a folder of another call; before any training.
        FloatingPointError: The loss is not finite.
    """
    recovery.weight_of_labels(labels)
    check_accelerator(recovery.accelerator, "recovery.accelerator")
    for model in (student, teacher):
        check_channels(Classifier(model).channels, host_class(model).__name__)
    if isinstance(augmentation, Augmentation):
        augmentation = augmentation.resolved(name_of(data))
    images = load_images(data, seed=seed, labels_needed=labels)
    if not labels and is_multi_label(teacher):
        images = replace(images, multi_label=True)
    check_pair(student, teacher, images, recovery, labels=labels)
    both = recovery.scope == "rear-then-all"
    phases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as passing, _devices_kept(student, teacher), eval_mode(teacher):
        job = RecoveryJob(
            student, teacher, images, preprocessing, recovery, labels, augmentation, workers, seed,
            Path(passing if out is None else out), progress, shared_cache,
        )  # fmt: skip
        if recovery.scope != "all":
            phases["rear"] = recover_rear(job, 1 - _SHARE_OF_ALL if both else 1.0)
        if recovery.scope != "rear":
            phases["all"] = _recover_all(job, _SHARE_OF_ALL if both else 1.0)
    student.eval()
    found = list(phases.values())
    return {
        "steps": sum(phase["steps"] for phase in found),
        "epochs": sum(phase["steps"] for phase in found) * recovery.batch_size / len(images.train),
        "seconds": sum(phase["seconds"] for phase in found),
        "precision": job.precision,
        "phases": phases,
    }


def _recover_all(job: RecoveryJob, share: float) -> dict[str, Any]:
    """Train the whole student."""
    held = None if job.data.validation is None else job.watched
    data = ImageSplits(
        job.data.train, held, job.data.test, job.data.class_names, job.data.multi_label, (), job.data.description
    )
    loader = ImageData(
        data, image_size=job.image_size, preprocessing=job.preprocessing, batch_size=job.recovery.batch_size, epochs=1,
        seed=job.seed, augmentation=job.augmentation, workers=job.workers,
    )  # fmt: skip
    per_epoch = loader.steps_per_epoch
    steps = job.length("all", lambda: {"steps": _steps_of_all(job, loader, share)})["steps"]
    loader.epochs = math.ceil(steps / per_epoch)
    watched = ImageData(
        ImageSplits(job.watched, job.watched, job.watched, data.class_names, data.multi_label, (), ""),
        image_size=job.image_size, preprocessing=job.preprocessing, workers=0, epochs=1,
        batch_size=min(job.recovery.batch_size, len(job.watched)),
    )  # fmt: skip
    job.say(f"    all: {steps:,} steps of {job.recovery.batch_size} images")
    folder = job.phase("all", steps)
    with folder.exclusive():
        task = job.task(job.student, steps, per_epoch)
        return train_phase(task, loader, folder, job, steps=steps, watched=watched.val_dataloader)


def _steps_of_all(job: RecoveryJob, loader: ImageData, share: float) -> int:
    recovery = job.recovery
    if recovery.seconds is None:
        return max(1, round(share * recovery.steps_for(len(job.data.train))))
    batch = next(iter(loader.train_dataloader()))
    seconds = seconds_per_step(job.task(copy.deepcopy(job.student).to(job.device), 10, 10), batch, job)
    return max(1, int(share * recovery.seconds / seconds))


@contextmanager
def _devices_kept(*models: nn.Module) -> Iterator[None]:
    """Afterwards each model is on the device that it was on."""
    devices = [next(model.parameters()).device for model in models]
    try:
        yield
    finally:
        for model, device in zip(models, devices, strict=True):
            model.to(device)
