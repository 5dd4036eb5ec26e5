"""The trained model that is to be accelerated: found, and checked to be a plain classifier of RGB images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.splits import ImageSplits
from patchmerger.hub.saving import savable_library
from patchmerger.insertion.inserted import mergers
from patchmerger.models.classifier import Classifier
from patchmerger.models.finding import FoundModel, find_model


@dataclass(frozen=True)
class Teacher:
    """A plain, trained classifier.

    Attributes:
        found: The model and what is known of it.
        preprocessing: How its images are prepared.
        num_classes: Outputs of its head.
    """

    found: FoundModel
    preprocessing: Preprocessing
    num_classes: int

    @property
    def name(self) -> str:
        """What to call it."""
        return self.found.name

    @property
    def net(self) -> nn.Module:
        """The model, in eval mode."""
        return self.found.model

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One name a class, where they are known."""
        return self.found.class_names


def find_teacher(
    model: str | Path | nn.Module,
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop_pct: float | None = None,
) -> Teacher:
    """Load a trained model and find out how its images are prepared.

    Args:
        model: As in :func:`~patchmerger.models.find_model`, with trained weights.
        architecture: For a safetensors file, timm's name of the architecture.
        model_args: Further arguments of ``timm.create_model`` for it.
        mean: Mean of each channel, in place of what is known of the model.
        std: Standard deviation of each channel, likewise.
        crop_pct: Share of the resized image that is kept in evaluation, likewise.

    Raises:
        ValueError: A model that is not known, has no weights, is no classifier of RGB images or has a merger already.
        FileNotFoundError: There is no such folder or file.
    """
    found = find_model(model, architecture=architecture, model_args=model_args)
    savable_library(found.model)  # before hours of work
    if mergers(found.model):
        raise ValueError(
            f"model ({found.name}) has a merger already: patchmerger.remove(model) takes it out; patchmerger.fit and "
            "distill train it as it is"
        )
    classifier = Classifier(found.model)
    if classifier.channels != 3:
        raise ValueError(
            f"model ({found.name}) takes images of {classifier.channels} channels; the images here have 3 (RGB)"
        )
    if not classifier.gives_scores:
        raise ValueError(
            f"model ({found.name}) gives {classifier.num_outputs} features and no scores of classes: train a "
            "classifier on them first, then accelerate it"
        )
    preprocessing = _preprocessing(found, mean, std, crop_pct)
    if preprocessing != found.preprocessing:
        found = replace(found, preprocessing=preprocessing, image_processor=None)
    found.model.eval()
    return Teacher(found, preprocessing, classifier.num_outputs)


def _preprocessing(
    found: FoundModel, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, crop_pct: float | None
) -> Preprocessing:
    """What is known of the images, with what was given in its place."""
    given = {name: value for name, value in (("mean", mean), ("std", std), ("crop_pct", crop_pct)) if value is not None}
    if found.preprocessing is not None:
        preprocessing = replace(found.preprocessing, **given)  # type: ignore[arg-type]
    elif mean is None or std is None:
        raise ValueError(
            f"model ({found.name}) does not say how its images are normalised: give mean and std, such as "
            "--mean [0.5,0.5,0.5] --std [0.5,0.5,0.5]"
        )
    else:
        preprocessing = Preprocessing(mean, std, 1.0 if crop_pct is None else crop_pct)
    if len(preprocessing.mean) != 3:
        raise ValueError(f"mean ({preprocessing.mean}) and std ({preprocessing.std}) must be three numbers each")
    return preprocessing


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
