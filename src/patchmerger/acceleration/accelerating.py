"""A trained Vision Transformer in, a faster one as accurate out: place, start well, recover, prove, keep."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, get_args

from patchmerger.acceleration.calibration import Start, best_start
from patchmerger.acceleration.placement import choose_place
from patchmerger.acceleration.run import AccelerationRun
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.acceleration.teacher import Teacher, find_teacher
from patchmerger.data import Augmentation, DataSettings, ImageSplits, default_augmentation, load_images
from patchmerger.data.unlabelled import is_unlabelled, load_unlabelled
from patchmerger.mechanism.options import Positions
from patchmerger.runs.run_folder import RunFolder, default_folder


def accelerate(
    model: Any,
    data: DataSettings = DataSettings(),
    *,
    speedup: float | None = None,
    after: int | None = None,
    num_tokens: int | None = None,
    positions: Positions | None = None,
    measure: bool = False,
    start: Start = "best",
    calibration_images: int = 512,
    epochs: float | None = None,
    budget: str | None = None,
    max_drop: float | None = None,
    labels: bool | None = None,
    recovery: RecoverySettings = RecoverySettings(),
    augmentation: Augmentation | None = None,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    rounds: int = 10,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a trained ViT faster: place a merger, start it well, recover accuracy, prove it, keep the result.

    The same command again goes on where an interrupted run stopped, and prints the result of a finished one. The
    files of the model that goes in are never changed.

    Args:
        model: The trained model: a folder (of patchmerger, of a run, of transformers), a timm architecture with
            weights, a name on the Hugging Face hub, or a safetensors file. In Python also a model itself.
        data: The images; labels are optional.
        speedup: Wanted speed-up, predicted by FLOPs; the merge comes as late as it allows. 2 if not given.
        after: In its place the block to merge after, counted from 1.
        num_tokens: Tokens that go on; chosen with the place if not given.
        positions: As in insert; by default what the model needs.
        measure: Let a measurement on this machine reach the speed-up, rather than the prediction.
        start: How the merger's queries begin: reconstruction, soft, kmeans, spatial or random; best is soft where a
            recovery follows, else reconstruction.
        calibration_images: Training images that the start is computed from, without labels.
        epochs: Length of the recovery in passes over the training images, also a part of one; 0 for none. 1 if not
            given.
        budget: In its place the time for it, such as 10min, 90s or 2h.
        max_drop: The drop of accuracy that is accepted, in points; 0.5 if not given. Needs labels.
        labels: Whether labels are used; by default if there are any.
        recovery: How accuracy is won back.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        architecture: For a safetensors file, the architecture in timm.
        model_args: For a safetensors file, further arguments of timm.create_model.
        mean: Mean of each channel, in place of what the model says.
        std: Standard deviation of each channel, likewise.
        rounds: Rounds of the speed measurement, in which both models take turns.
        seed: Fixes the images that are held out and all randomness.
        out: The folder; runs/accelerate-MODEL-FINGERPRINT if not given.
        progress: Say which step runs and how accurate the model is, with bars on a terminal.

    Returns:
        The content of the folder's ``results.json``; the model is in its folder ``model``.

    Raises:
        ValueError: A model, data or settings that do not fit, or a folder of another run; before any training.
        FileNotFoundError: No such model or data.
    """
    unlabelled = is_unlabelled(data.source)
    if unlabelled and labels:
        raise ValueError(f"labels (true): {data.source} is a folder of images without class folders, so it has none")
    use_labels = not unlabelled if labels is None else labels
    recovery.check(labels=use_labels)
    if max_drop is not None and not use_labels:
        raise ValueError(f"max_drop ({max_drop:g}) is a drop of accuracy, which needs labels, and there are none")
    drop = 0.5 if max_drop is None else max_drop
    if drop < 0:
        raise ValueError(f"max_drop ({drop:g}) must be 0 or more points")
    if start not in get_args(Start):
        raise ValueError(f"start ({start!r}) must be one of {', '.join(map(repr, get_args(Start)))}")
    if calibration_images < 2:
        raise ValueError(f"calibration_images ({calibration_images}) must be at least 2; some hundreds are good")
    seconds = None if budget is None else seconds_of(budget)
    if seconds is not None and epochs is not None:
        raise ValueError(f"epochs ({epochs:g}) and budget ({budget}) both bound the recovery: give one of them")
    if epochs is not None and epochs < 0:
        raise ValueError(f"epochs ({epochs:g}) must be 0 (no training) or more")
    teacher = find_teacher(
        model, architecture=architecture, model_args=model_args,
        mean=None if mean is None else tuple(mean), std=None if std is None else tuple(std), crop_pct=data.crop_pct,
    )  # fmt: skip
    augmentation = augmentation or default_augmentation(data.source)
    settings: dict[str, Any] = {
        "model": teacher.name, "weights": teacher.found.fingerprint, "data": data, "speedup": speedup, "after": after,
        "num_tokens": num_tokens, "positions": positions, "measure": measure, "start": start,
        "calibration_images": calibration_images, "epochs": epochs, "budget": budget, "max_drop": drop,
        "labels": use_labels, "recovery": recovery, "augmentation": augmentation,
        "preprocessing": teacher.preprocessing, "rounds": rounds, "seed": seed,
    }  # fmt: skip
    folder = RunFolder(Path(out) if out else default_folder("accelerate", teacher.name, settings), settings)
    if folder.results is not None:
        return folder.results
    images = load_unlabelled(data, seed=seed) if unlabelled else load_images(data, seed=seed)
    if len(images.train) < recovery.batch_size:
        raise ValueError(
            f"recovery.batch_size ({recovery.batch_size}) is more than the {len(images.train)} training images: take a "
            "smaller one"
        )
    if use_labels:
        check_classes(teacher, images, data.source)
    run = AccelerationRun(folder, teacher, images, use_labels, recovery, seed, progress, data.workers)
    place = run.place(
        lambda: choose_place(
            teacher.net, speedup=speedup, after=after, num_tokens=num_tokens, positions=positions, measured=measure,
            batch_size=min(16, recovery.batch_size), precision=run.speed_precision, rounds=rounds,
        )
    )  # fmt: skip
    folder.begin()
    run.keep("place", place.as_dict)
    run.judge_teacher(data.source)
    student = run.start(place, best_start(recovers=epochs != 0) if start == "best" else start, calibration_images)
    run.recover(student, epochs, seconds, augmentation)
    return run.finish(student, place, drop, rounds)


def check_classes(teacher: Teacher, images: ImageSplits, source: str) -> None:
    """Refuse labels that the model's head has no outputs for."""
    classes = len(images.class_names)
    if teacher.num_classes != classes:
        raise ValueError(
            f"data ({source}) has {classes} classes, but the head of model ({teacher.name}) has {teacher.num_classes}: "
            "take the data that it was trained on, train a head for these first (patchmerger fit), or leave the labels "
            "out (labels=false), so that the plain model alone is the teacher"
        )
    names = teacher.class_names
    if names is None or names == images.class_names:
        return
    ours, theirs = (", ".join(named[:5]) for named in (images.class_names, names))
    if sorted(names) == sorted(images.class_names):
        raise ValueError(
            f"data ({source}) has the model's classes in another order: {ours} … there, {theirs} … in model "
            f"({teacher.name})"
        )
    warnings.warn(
        f"data ({source}) names its classes {ours} …, model ({teacher.name}) {theirs} …: they are taken to be the same "
        "ones, in this order",
        stacklevel=3,
    )


def seconds_of(budget: str) -> float:
    """Seconds in a time such as 10min, 90s, 2h.

    Raises:
        ValueError: It is no such time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)\s*", budget)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"budget ({budget!r}) must be a time above 0 with its unit, such as 10min, 90s or 2h")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
