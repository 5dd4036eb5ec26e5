"""Few-shot accuracy: how well a linear classifier on frozen features does, fitted to k images a class."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from patchmerger.data import DataSettings, ImageSet, ImageSplits, Preprocessing, load_images
from patchmerger.data.loading import DataLike, name_of, settings_of
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.fewshot.features import FeatureFunction, extract_features, pre_logits
from patchmerger.fewshot.results import FewShot, KShot
from patchmerger.fewshot.ridge import RidgeClassifier, accuracy, choose_strength
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.models.classifier import find_classifier
from patchmerger.runs.checks import check_count
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.files import check_out, write_json
from patchmerger.runs.random_state import key

STRENGTHS = tuple(2.0**power for power in range(-10, 21, 2))
"""The strengths of the penalty that are tried on the validation images."""


def few_shot(
    model: str | Path | nn.Module,
    data: DataLike = DataSettings(),
    settings: FewShotSettings = FewShotSettings(),
    *,
    seed: int = 0,
    batch_size: int = 128,
    preprocessing: Preprocessing | None = None,
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> FewShot:
    """Measure the few-shot accuracy of a model: a linear classifier on its frozen features, in closed form.

    Every draw takes k training images of each class. The strength of the penalty is chosen for each on the
    validation images, and the classifier is then evaluated once on the test images. The same seed draws the same
    images for every model. The images' classes need not be those that the model was trained on.

    Args:
        model: As in :func:`~patchmerger.models.find_model`: a folder, an architecture with weights, a model.
        data: The images, with one label each, as in :func:`patchmerger.data.load_images`: a source such as "digits" or
            a folder, ``DataSettings``, or a dataset of one's own.
        settings: Numbers of images and of draws.
        seed: Fixes the draws, and what is held out where the data has no validation or test split of its own.
        batch_size: Images in a batch of the one pass that gives the features.
        preprocessing: How images are prepared, in place of what is known of the model.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        out: JSON file to write the result to.
        overwrite: Replace that file if it exists.
        progress: Show a progress bar, on a terminal.
        command: The command line that asked for it, kept in the result.

    Returns:
        The accuracies, as printed and as written.

    Raises:
        ValueError: Too few images of a class, several labels an image, or a model whose features are not known;
            before any feature.
        FileNotFoundError: No model in the folder, or no such data.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    check_count("batch_size", batch_size)
    check_out(out, overwrite=overwrite)
    place = find_device(device)
    said = settings_of(data)
    found = find_classifier(model, preprocessing=preprocessing, crop_pct=said.crop_pct, features=True)
    images = load_images(data, seed=seed)
    warn_of_seen(found.name, name_of(data), images, seed=seed, among=("validation", "test"))
    check_images(images, settings.shots)
    before = next(found.model.parameters()).device
    net = found.model if hasattr(found.model, "forward_head") else found.classifier
    result = few_shot_images(
        net.to(place),
        images,
        settings,
        seed=seed,
        image_size=found.image_size,
        preprocessing=found.preprocessing,
        batch_size=batch_size,
        workers=said.workers,
        progress=progress,
    )
    net.to(before)
    result = replace(result, model=found.name, command=command)
    if out is not None:
        write_json(out, result.as_dict(), new=not overwrite)
    return result


def few_shot_images(
    model: nn.Module,
    images: ImageSplits,
    settings: FewShotSettings = FewShotSettings(),
    *,
    image_size: int,
    preprocessing: Preprocessing,
    seed: int = 0,
    features: FeatureFunction = pre_logits,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> FewShot:
    """Measure the few-shot accuracy of any model, on images that are read; see :func:`few_shot`.

    The model, on the device to work on, is left as it was; images are fitted to ``image_size`` and have one label each.
    ``features`` makes features (B, D) of a model and normalised images (B, 3, S, S); by default what its last layer
    sees.
    """
    validation = check_images(images, settings.shots)
    classes = len(images.class_names)
    drawn = draw(images.train.targets, classes, max(settings.shots), settings.draws, seed)  # (draws, C, k)
    needed = torch.unique(drawn)  # (n,), ascending
    started = time.perf_counter()
    splits = [images.train.subset(needed.tolist()), validation, images.test]
    train, *held_out = extract_features(
        model, splits, image_size=image_size, preprocessing=preprocessing, features=features, batch_size=batch_size,
        workers=workers, progress=progress,
    )  # fmt: skip
    extracted = time.perf_counter()
    validated, tested = [(part.double(), split.targets) for part, split in zip(held_out, splits[1:], strict=True)]
    results = []
    for k in settings.shots:
        outcomes = []
        for part in drawn[:, :, :k]:
            rows = torch.searchsorted(needed, part.reshape(-1).contiguous())  # (C · k,)
            classifier = RidgeClassifier.fit(train[rows], splits[0].targets[rows], classes)
            strength, chosen_by = choose_strength(classifier, *validated, STRENGTHS)
            scores = classifier.scores(classifier.project(tested[0]), strength)
            outcomes.append((accuracy(scores, tested[1]), chosen_by, strength))
        results.append(KShot(k, *zip(*outcomes, strict=True)))
    return FewShot(
        model=type(model).__name__,
        data=images.description,
        results=tuple(results),
        classes=classes,
        feature_dim=train.shape[1],
        image_size=image_size,
        images={
            "train": len(images.train),
            "drawn": len(needed),
            "validation": len(validation),
            "test": len(images.test),
        },
        seed=seed,
        draws=settings.draws,
        strengths=STRENGTHS,
        seconds={"features": extracted - started, "classifiers": time.perf_counter() - extracted},
        environment=environment(next(model.parameters()).device),
    )


def draw(labels: Tensor, num_classes: int, shots: int, draws: int, seed: int) -> Tensor:
    """Draw training images of each class: int64 (draws, C, shots); the first k of them are the draw for k < ``shots``.

    Labels are class numbers, int64 (n,). A draw does not depend on how many there are.
    """
    drawn = torch.empty(draws, num_classes, shots, dtype=torch.long)
    for number in range(draws):
        for label in range(num_classes):
            candidates = (labels == label).nonzero().flatten()
            generator = torch.Generator().manual_seed(key(seed, number, label))
            drawn[number, label] = candidates[torch.randperm(len(candidates), generator=generator)[:shots]]
    return drawn


def check_images(images: ImageSplits, shots: Sequence[int]) -> ImageSet:
    """The validation images; ``ValueError`` where the images do not suffice, naming the class and the cure."""
    if images.multi_label:
        raise ValueError("images have several labels each: few-shot accuracy is for one label an image")
    if images.validation is None:
        raise ValueError(
            "data.validation (0) holds out no images to choose the strength on, and the test images are not for "
            "choosing: hold some out, such as 0.1"
        )
    name, count = _smallest_class(images.train.targets, images.class_names)
    if count < max(shots):
        raise ValueError(
            f"shots ({max(shots)}) takes more training images of each class than the {count} of class {name!r}: take "
            "fewer shots, or add images"
        )
    name, count = _smallest_class(images.validation.targets, images.class_names)
    if count < 1:
        raise ValueError(
            f"no validation image is of class {name!r}, so the strength could not be chosen for it: raise "
            "data.validation, or add images to the validation split"
        )
    return images.validation


def _smallest_class(labels: Tensor, class_names: Sequence[str]) -> tuple[str, int]:
    """The class with the fewest images, and how many these are."""
    counts = labels.bincount(minlength=len(class_names))
    return class_names[int(counts.argmin())], int(counts.min())
