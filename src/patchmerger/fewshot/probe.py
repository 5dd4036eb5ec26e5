"""Few-shot accuracy: how well a linear classifier on frozen features does, fitted to k images a class."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.data import DataSettings, ImageSet, ImageSplits, load_images
from patchmerger.data.batches import key
from patchmerger.fewshot.features import extract_features
from patchmerger.fewshot.result import FewShot, KShot
from patchmerger.fewshot.ridge import RidgeClassifier, accuracy, choose_strength
from patchmerger.hub import SavedConfig, describe, load
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.files import write_json

STRENGTHS = tuple(2.0**power for power in range(-10, 21, 2))
"""The strengths of the penalty that are tried on the validation images."""


def few_shot(
    model: Path | str,
    *,
    data: DataSettings = DataSettings(),
    shots: int | list[int] = [1, 5, 10, 25],  # noqa: B006 - read, never changed
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 128,
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> FewShot:
    """Measure the few-shot accuracy of a saved model: a linear classifier on its frozen features, in closed form.

    Every draw takes k training images of each class. The strength of the penalty is chosen for each on the
    validation images, and the classifier is then evaluated once on the test images. The same seed draws the same
    images for every model. The images' classes need not be those that the model was trained on.

    Args:
        model: A folder that patchmerger saved: the "model" folder of a run, or the run's own.
        data: The images, with one label each.
        shots: Training images of each class, k: one number, or several.
        draws: How often the training images are drawn; mean and standard deviation are taken over the draws.
        seed: Fixes the draws, and what is held out where the data has no validation or test split of its own.
        batch_size: Images in a batch of the one pass that gives the features.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        out: JSON file to write the result to.
        overwrite: Replace that file if it exists.
        progress: Show a progress bar, on a terminal.

    Returns:
        The accuracies, as printed and as written.

    Raises:
        ValueError: Numbers below 1, too few images of a class, or several labels an image; before any feature.
        FileNotFoundError: No model in the folder, or no such data.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    counts = [shots] if isinstance(shots, int) else shots
    check_protocol(counts, draws)
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1")
    _check_out(out, overwrite)
    place = find_device(device)
    folder = Path(model)
    folder = folder / "model" if (folder / "model" / "config.json").exists() else folder
    saved = describe(folder)
    image_size = _image_size(saved, folder)
    images = load_images(data, seed=seed)
    check_images(images, counts)
    net = load(folder, device=place)
    if saved.preprocessing is None:
        raise ValueError(f"model ({folder}) does not say how its images are normalised")
    preprocessing = replace(saved.preprocessing, crop_pct=data.crop_pct or saved.preprocessing.crop_pct)
    result = few_shot_images(
        net, images, shots=counts, draws=draws, seed=seed, image_size=image_size, preprocessing=preprocessing,
        batch_size=batch_size, workers=data.workers, progress=progress,
    )  # fmt: skip
    result = replace(result, model=str(folder))
    if out is not None:
        write_json(out, result.as_dict())
    return result


def few_shot_images(
    model: nn.Module,
    images: ImageSplits,
    *,
    shots: Sequence[int] = (1, 5, 10, 25),
    draws: int = 5,
    seed: int = 0,
    **extraction: Any,
) -> FewShot:
    """Measure the few-shot accuracy of a model that is not saved, or of another library's.

    Args:
        model: A model on the device to work on; it is left as it was.
        images: Training, validation and test images, with one label each.
        shots: Numbers of training images of each class, k.
        draws: How often the training images are drawn.
        seed: Fixes the draws.
        **extraction: How images become features, as :func:`~patchmerger.fewshot.features.extract_features` has it:
            ``image_size`` and ``preprocessing``, and by option ``features`` (for a model that is not
            one of timm's), ``batch_size``, ``workers`` and ``progress``.

    Returns:
        The accuracies.

    Raises:
        ValueError: Numbers below 1, too few images of a class, or several labels an image; before any feature.
    """
    check_protocol(shots, draws)
    validation = check_images(images, shots)
    drawn = draw(images.train.targets, len(images.class_names), max(shots), draws, seed)  # (draws, C, k)
    needed = torch.unique(drawn)  # (n,), ascending
    started = time.perf_counter()
    splits = [images.train.subset(needed.tolist()), validation, images.test]
    train, *held_out = extract_features(model, splits, **extraction)  # (n, D)
    extracted = time.perf_counter()
    classes, counts = len(images.class_names), [len(images.train), *map(len, splits)]
    labelled = [(features.double(), split.targets) for features, split in zip(held_out, splits[1:], strict=True)]
    results = []
    for k in shots:
        outcomes = []
        for part in drawn[:, :, :k]:
            rows = torch.searchsorted(needed, part.reshape(-1).contiguous())  # (C · k,)
            classifier = RidgeClassifier.fit(train[rows], splits[0].targets[rows], classes)
            outcomes.append(_evaluate(classifier, *labelled))
        results.append(KShot(k, *zip(*outcomes, strict=True)))
    return FewShot(
        model=type(model).__name__,
        data=images.description,
        results=tuple(results),
        classes=classes,
        feature_dim=train.shape[1],
        image_size=extraction["image_size"],
        images=dict(zip(("train", "drawn", "validation", "test"), counts, strict=True)),
        seed=seed,
        draws=draws,
        strengths=STRENGTHS,
        seconds={"features": extracted - started, "classifiers": time.perf_counter() - extracted},
        environment=environment(next(model.parameters()).device),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


def draw(labels: Tensor, num_classes: int, shots: int, draws: int, seed: int) -> Tensor:
    """Draw training images of each class; the first k of them are the draw for k < ``shots``.

    Args:
        labels: Class numbers, int64 (n,).
        num_classes: C.
        shots: Images of each class.
        draws: How often; a draw does not depend on how many there are.
        seed: What the draws depend on.

    Returns:
        Indices of images, int64 (draws, C, shots).
    """
    drawn = torch.empty(draws, num_classes, shots, dtype=torch.long)
    for number in range(draws):
        for label in range(num_classes):
            candidates = (labels == label).nonzero().flatten()
            generator = torch.Generator().manual_seed(key(seed, number, label))
            drawn[number, label] = candidates[torch.randperm(len(candidates), generator=generator)[:shots]]
    return drawn


def check_protocol(shots: Sequence[int], draws: int) -> None:
    """Raise ``ValueError`` for numbers that make no few-shot evaluation."""
    if not shots:
        raise ValueError("shots is empty: name at least one number of images a class, such as 10")
    if min(shots) < 1:
        raise ValueError(f"shots ({list(shots)}) must be at least 1 image a class each")
    if len(set(shots)) < len(shots):
        raise ValueError(f"shots ({list(shots)}) names a number twice")
    if draws < 1:
        raise ValueError(f"draws ({draws}) must be at least 1")


def check_images(images: ImageSplits, shots: Sequence[int]) -> ImageSet:
    """The validation images; ``ValueError`` where the images do not suffice, naming the class and the way out."""
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


def _evaluate(
    classifier: RidgeClassifier, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> tuple[float, float, float]:
    """Test accuracy, validation accuracy and the strength that was chosen by the latter."""
    strength, chosen_by = choose_strength(classifier, *validation, STRENGTHS)
    features, labels = test
    return accuracy(classifier.scores(classifier.project(features), strength), labels), chosen_by, strength


def _image_size(saved: SavedConfig, folder: Path) -> int:
    """Height and width of the images of a saved model; refused where :func:`few_shot` could not make its features."""
    if saved.library != "timm":
        raise ValueError(
            f"model ({folder}) is of {saved.library}, and only features of timm's models are known by themselves: give "
            "few_shot_images a function that makes them"
        )
    _, height, width = saved.input_size or (0, 0, 0)
    if height != width:
        raise ValueError(f"model ({folder}) takes images of {height} × {width} pixels; only square ones are made here")
    return height


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"out ({out}) is a folder: name a file in it")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out ({out}) exists already: take another name, or --overwrite true")
    out.parent.mkdir(parents=True, exist_ok=True)
