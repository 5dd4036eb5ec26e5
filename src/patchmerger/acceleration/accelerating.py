"""A trained Vision Transformer in, a faster one as accurate out."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.acceleration.recovery_job import too_few_images
from patchmerger.acceleration.run import AccelerationRun
from patchmerger.acceleration.settings import PlacementSettings, QueryInitSettings, RecoverySettings
from patchmerger.data import Augmentation, DataSettings, ImageSplits, Preprocessing
from patchmerger.data.loading import DataLike, has_labels, identify_data, load_images
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.hosts import find_host
from patchmerger.hub.libraries import savable_library
from patchmerger.mechanism.blocks import is_merging
from patchmerger.models.classifier import Classifier, FoundClassifier, find_classifier
from patchmerger.models.finding import FoundModel
from patchmerger.runs.run_folder import RunFolder, default_folder, fingerprint
from patchmerger.training.devices import check_accelerator
from patchmerger.training.trainer import coarse_dtype


def accelerate(
    model: str | Path | nn.Module | FoundModel,
    data: DataLike = DataSettings(),
    *,
    placement: PlacementSettings = PlacementSettings(),
    query_init: QueryInitSettings = QueryInitSettings(),
    recovery: RecoverySettings = RecoverySettings(),
    augmentation: Augmentation | None = None,
    max_drop: float | None = None,
    labels: bool | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Make a trained ViT faster: place a merger, initialise its queries, recover accuracy, evaluate, keep the result.

    The same call again resumes an interrupted run, and returns the results of a finished one, also where the model that
    goes in was moved. Its files are never changed.

    Args:
        model: The trained model: a folder (of patchmerger, of a run, of transformers), a timm architecture with
            weights, a name on the Hugging Face Hub, a model, or what :func:`find_teacher` gave.
        data: The images, as ``load_images`` takes them: a source, a dataset of your own, …; labels are optional.
        placement: Where to merge: for a wanted speed-up (2 by default), or after a given block.
        query_init: How the merger's queries begin.
        recovery: How accuracy is recovered, and for how long.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        max_drop: The drop of accuracy that is accepted, in points; 0.5 if not given. Needs labels.
        labels: Whether labels are used; by default if there are any.
        seed: Fixes the images that are held out and all randomness.
        out: The folder; runs/accelerate-MODEL-FINGERPRINT if not given.
        progress: Say which step runs and how accurate the model is, with bars on a terminal.
        command: The command line that asked for it, kept in the results.

    Returns:
        The content of the folder's ``results.json``; the model is in its folder ``model``.

    Raises:
        ValueError: A model, data or settings that do not fit, or a folder of another run; before any training.
        FileNotFoundError: No such model or data.
    """
    source = identify_data(data)
    labelled = has_labels(data)
    if labels and not labelled:
        raise ValueError(f"labels (true): data ({source.source}) holds images without labels")
    use_labels = labelled if labels is None else labels
    recovery.weight_of_labels(use_labels)
    if max_drop is not None and not use_labels:
        raise ValueError(f"max_drop ({max_drop:g}) is a drop of accuracy, which needs labels, and there are none")
    if placement.reducer is None:
        working = recovery.epochs == 0 and query_init.method == "best"
        placement = replace(placement, reducer="dpcknn" if working else "patchmerger")
    if placement.reducer != "patchmerger" and query_init.method != "best":
        raise ValueError(
            f"query_init ({query_init.method!r}) means nothing to reducer ({placement.reducer!r}), which has no queries"
        )
    if placement.compare == "recovered" and recovery.epochs == 0:
        raise ValueError("compare ('recovered') needs a recovery, and epochs (0) leaves it out: compare them untrained")
    drop = 0.5 if max_drop is None else max_drop
    if drop < 0:
        raise ValueError(f"max_drop ({drop:g}) must be 0 or more points")
    teacher = find_teacher(model, crop_pct=source.crop_pct)
    _warn_of_frozen(teacher)
    augmentation = (augmentation or Augmentation()).resolved(source.source)
    settings: dict[str, Any] = {  # the model by what is in it, for its folder may be moved
        "weights": teacher.fingerprint, "classes": fingerprint([teacher.class_names, teacher.multi_label]),
        "preprocessing": teacher.preprocessing,
        "data": source, "placement": placement, "query_init": query_init, "recovery": recovery,
        "augmentation": augmentation, "max_drop": drop, "labels": use_labels, "seed": seed,
    }  # fmt: skip
    folder = RunFolder(Path(out) if out else default_folder("accelerate", teacher.name, settings), settings)
    if folder.results is not None:
        return folder.results
    check_accelerator(recovery.accelerator, "recovery.accelerator")
    images = load_images(data, seed=seed, labels_needed=use_labels)
    warn_of_seen(teacher.name, source.source, images, seed=seed, among=("validation", "test"))
    if len(images.train) < recovery.batch_size:
        raise too_few_images(recovery, len(images.train))
    if use_labels:
        check_classes(teacher, images, source.source)
    elif teacher.multi_label:
        images = replace(images, multi_label=True)
    run = AccelerationRun(folder, teacher, images, use_labels, recovery, seed, progress, source.workers)
    chosen = run.choose_placement(placement, query_init.method, augmentation)
    with folder.exclusive() as finished:
        if finished is not None:  # by another process meanwhile
            return finished
        run.evaluate_teacher(chosen, source.source)
        student = run.initialise_queries(chosen, query_init)
        run.recover(student, augmentation)
        return run.finish(student, chosen, drop, rounds=placement.rounds, command=command)


def find_teacher(
    model: str | Path | nn.Module | FoundModel,
    *,
    preprocessing: Preprocessing | None = None,
    crop_pct: float | None = None,
) -> FoundClassifier:
    """Find the plain, trained classifier that is to be made faster, in eval mode and with weights in float32.

    Args:
        model: As in :func:`~patchmerger.models.find_model`; a model in memory is copied, and left as it was.
        preprocessing: How images are prepared, in place of what is known of the model.
        crop_pct: Share of the resized image that is kept in evaluation, likewise.

    Raises:
        ValueError: It is no classifier of RGB images, does not say how these are prepared, could not be saved, or has a
            merger already.
        FileNotFoundError: There is no such folder or file.
    """
    found = find_classifier(model, preprocessing=preprocessing, crop_pct=crop_pct)
    savable_library(found.model)  # before hours of work
    if any(is_merging(block) for block in find_host(found.model).blocks):
        raise ValueError(
            f"model ({found.name}) has a merger already: patchmerger.remove(model) takes it out; patchmerger.fit and "
            "distill train it as it is"
        )
    coarse = coarse_dtype(found.model) is not None
    net = copy.deepcopy(found.model) if coarse or isinstance(model, nn.Module) else found.model
    net = (net.float() if coarse else net).eval()
    return replace(found, model=net, classifier=Classifier(net))


def _warn_of_frozen(teacher: FoundClassifier) -> None:
    frozen = sum(p.numel() for p in teacher.model.parameters() if not p.requires_grad)
    if frozen:
        warnings.warn(
            f"model ({teacher.name}): {frozen:,} of its {sum(p.numel() for p in teacher.model.parameters()):,} "
            "parameters are frozen (requires_grad is false) and stay as they are, which costs accuracy: "
            "model.requires_grad_(True) lets the recovery train them",
            stacklevel=3,
        )


def check_classes(teacher: FoundClassifier, images: ImageSplits, source: str) -> None:
    """Refuse labels that the model's head has no outputs for."""
    classes, outputs = len(images.class_names), teacher.classifier.num_outputs
    if outputs != classes:
        raise ValueError(
            f"data ({source}) has {classes} classes, but the head of model ({teacher.name}) has {outputs}: "
            "take the data that it was trained on, train a head for these first (patchmerger fit), or leave the labels "
            "out (labels=false), so that the plain model alone is the teacher"
        )
    if teacher.multi_label and not images.multi_label:
        raise ValueError(
            f"data ({source}) has one label an image, and model ({teacher.name}) was trained on several: take data "
            "with several, or leave the labels out (labels=false)"
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
