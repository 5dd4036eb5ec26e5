"""Training, validation and test sets told apart, held out where they are missing, the same for the same seed."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from torch import Tensor

from patchmerger.data.images import ImageSet
from patchmerger.data.labels import doubtful_classes

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The names that splits go by, and what they are called here."""

FOLDS = 5
"""Into how many parts data without a test set is divided: five seeds in a row test every image exactly once."""

SWAPPED = (
    "the images, or their labels, are others than those that the run began with, behind the same settings: put them "
    "back to resume it, or begin anew in another folder"
)
"""Why an unfinished run does not go on, where its images have another ``content``."""

_LEAST = 10  # images without labels


@dataclass(frozen=True)
class ImageDataset:
    """A whole dataset, read and checked, whose splits for a seed are not made yet.

    Attributes:
        name: What to call it: its source.
        sets: Images by ``"train"`` and, where there are such splits, ``"validation"`` and ``"test"``.
        class_names: The name of each class number; none without labels.
        validation: The share of the training images to hold out for validation; 0 for none.
        skipped: The files that were left out, with the reason.
        remarks: What a user should know, such as a folder that was not read.
    """

    name: str
    sets: dict[str, ImageSet]
    class_names: tuple[str, ...]
    validation: float = 0.1
    skipped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSplits:
    """The images of one run.

    Attributes:
        train: To learn from.
        validation: To watch and choose by, or None.
        test: For the final number, to be looked at once.
        class_names: The name of each class number; none without labels.
        multi_label: Whether an image may have several labels (targets are zeros and ones then).
        skipped: The files that were left out, with the reason.
        description: In words: source, numbers of images and classes, where each set comes from.
        held_out: The sets ("test", "validation") that a seed has drawn from the training images; each with the share
            for validation where that, too, decides which images they are.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    class_names: tuple[str, ...]
    multi_label: bool
    skipped: tuple[str, ...]
    description: str
    held_out: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of the description, the classes and the targets of all sets: images that differ in none are the same.

        A training set that is read in order has no targets yet, and counts by its description alone.
        """
        digest = hashlib.sha256("\n".join((self.description, *self.class_names)).encode())
        for images in (self.train, self.validation, self.test):
            if images is not None and images.random_access:
                digest.update(images.targets.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def content(self) -> str:
        """A hash of the classes, the targets and some images of each set, for what settings do not tell apart."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name, images in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if images is not None:
                digest.update(f"{name} {len(images)} {images.sample_hash}".encode())
                digest.update(images.targets.contiguous().numpy().tobytes() if images.random_access else b"")
        return digest.hexdigest()

    @property
    def to_look_at(self) -> ImageSet:
        """A set that some images may be taken from: validation, or else train, or test where train is streamed."""
        if self.validation is not None:
            return self.validation
        return self.train if self.train.random_access else self.test


def warn_of(source: str, remarks: Sequence[str], class_names: Sequence[str] = ()) -> None:
    """Says what is left out or lost of the data, and which classes are doubtful, once."""
    remarks = [*remarks, *doubtful_classes(class_names)]
    if remarks:
        warnings.warn(f"data ({source}): {'; '.join(remarks)}", stacklevel=3)


def split_images(images: ImageDataset, *, seed: int) -> ImageSplits:
    """Makes the training, validation and test sets of one seed.

    | splits that are there | validation set | test set |
    |---|---|---|
    | train, validation, test | as it is | as it is |
    | train, test | held out of train | as it is |
    | train, validation | held out of train | the validation split |
    | train | held out of train | held out of train |

    So a test set is never the one that choices were made by. What is held out has the classes in train's proportions
    (with several labels an image, or none, it is drawn at random). A test set that must be held out is fold
    ``seed % 5`` of five, drawn anew every five seeds; the validation set is drawn from the rest.

    Args:
        images: The dataset.
        seed: What is held out depends on it, and on the share for validation.

    Raises:
        ValueError: There is no training split, ``seed`` is below 0, there is only one class or a class without
            training images, or there are too few images to hold some out.
    """
    if "train" not in images.sets:
        raise ValueError(f"{images.name} has no training split; found: {', '.join(images.sets) or 'none'}")
    if seed < 0:
        raise ValueError(f"seed ({seed}) must be 0 or more")
    if not images.class_names:
        return _split_unlabelled(images, seed)
    for name, split in images.sets.items():
        _check_classes(name, split.targets, images.class_names)
    train, given, test = images.sets["train"], images.sets.get("validation"), images.sets.get("test")
    how, held_out = ["test split as given"], dict[str, float | None]()
    if test is None and given is not None:
        test, given = given, None
        how = ["the validation split is the test set"]
    elif test is None:
        train, test = _fold(train, images.class_names, seed)
        how = [f"test set is fold {seed % FOLDS + 1} of {FOLDS} of train"]
        held_out["test"] = None
    if given is not None:
        how.append("validation split as given")
    elif images.validation > 0:
        train, given = _hold_out(train, images.class_names, images.validation, seed)
        how.append(f"validation set is {images.validation:g} of train")
        held_out["validation"] = images.validation
    else:
        how.append("no validation set")
    return make_splits(images, (train, given, test), f"{', '.join(how)} (seed {seed})", held_out)


def _split_unlabelled(images: ImageDataset, seed: int) -> ImageSplits:
    """As many images for testing as for validation, held out at random."""
    train, given, test = images.sets["train"], images.sets.get("validation"), images.sets.get("test")
    if len(train) < _LEAST:
        raise ValueError(f"{images.name} has {len(train)} images: {_LEAST} at least, to learn from and to hold out")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held, held_out = max(1, round((images.validation or 0.1) * len(train))), dict[str, float | None]()
    if given is None and images.validation:
        given, order = train.subset(sorted(order[:held])), order[held:]
        held_out["validation"] = images.validation
    if test is None:
        test, order = train.subset(sorted(order[:held])), order[held:]
        held_out["test"] = images.validation
    return make_splits(
        images, (train.subset(sorted(order)), given, test), f"without labels, held out at random (seed {seed})",
        held_out,
    )  # fmt: skip


def make_splits(
    images: ImageDataset,
    sets: tuple[ImageSet, ImageSet | None, ImageSet],
    how: str,
    held_out: Mapping[str, float | None] | None = None,
) -> ImageSplits:
    """Training, validation and test set of a dataset, with a word on how they were told apart, and which by a seed."""
    train, validation, test = sets
    counts = [f"{len(train):,} training", f"{len(test):,} test"]
    if validation is not None:
        counts.insert(1, f"{len(validation):,} validation")
    classes = f" of {len(images.class_names)} classes" if images.class_names else ""
    notes = [how, *images.remarks]
    if images.skipped:
        notes.append(f"{len(images.skipped)} bad files left out")
    return ImageSplits(
        train=train,
        validation=validation,
        test=test,
        class_names=images.class_names,
        multi_label=test.targets.is_floating_point(),
        skipped=images.skipped,
        description=f"{images.name}: {', '.join(counts)} images{classes}; {'; '.join(notes)}",
        held_out=held_out or {},
    )


def _check_classes(name: str, targets: Tensor, class_names: Sequence[str]) -> None:
    if len(targets) == 0:
        raise ValueError(f"the {name} split has no images")
    if targets.is_floating_point():
        counts = targets.sum(0).long()
    elif int(targets.min()) < 0 or int(targets.max()) >= len(class_names):
        raise ValueError(
            f"the {name} split has class numbers from {int(targets.min())} to {int(targets.max())}, "
            f"but there are {len(class_names)} classes"
        )
    else:
        counts = targets.bincount(minlength=len(class_names))
    if len(class_names) < 2 and not targets.is_floating_point():
        raise ValueError(f"there is only one class ({', '.join(class_names)}): nothing to tell apart")
    if name == "train" and not bool(counts.all()):
        empty = [class_names[number] for number in (counts == 0).nonzero().flatten().tolist()]
        raise ValueError(
            f"no training images of {len(empty)} of {len(class_names)} classes: {', '.join(empty[:10])}; add some, or "
            "take these classes away (of a column of class labels: cast it to those that are there)"
        )


def _fold(images: ImageSet, class_names: Sequence[str], seed: int) -> tuple[ImageSet, ImageSet]:
    _check_enough(images, class_names, FOLDS, f"a test set of one image a class in each of {FOLDS} folds")
    kind = KFold if images.targets.is_floating_point() else StratifiedKFold
    folds = kind(FOLDS, shuffle=True, random_state=seed // FOLDS)
    rest, held = list(folds.split(torch.zeros(len(images), 1), images.targets))[seed % FOLDS]
    return images.subset(rest.tolist()), images.subset(held.tolist())


def _hold_out(images: ImageSet, class_names: Sequence[str], share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    _check_enough(images, class_names, 2, "one for training and one for validation")
    classes = 1 if images.targets.is_floating_point() else len(class_names)
    if len(images) * share < classes:
        raise ValueError(
            f"validation={share:g} of {len(images)} images is fewer than one for each of {classes} classes: "
            f"take at least {math.ceil(100 * classes / len(images)) / 100:.2f}, 0 for no validation set, or give a "
            "validation split"
        )
    kind = ShuffleSplit if images.targets.is_floating_point() else StratifiedShuffleSplit
    rest, held = next(kind(1, test_size=share, random_state=seed).split(torch.zeros(len(images), 1), images.targets))
    return images.subset(sorted(rest.tolist())), images.subset(sorted(held.tolist()))


def _check_enough(images: ImageSet, class_names: Sequence[str], needed: int, what_for: str) -> None:
    if images.targets.is_floating_point():
        smallest, name = len(images), "any class"
    else:
        counts = images.targets.bincount(minlength=len(class_names))
        smallest, name = int(counts.min()), f"class {class_names[int(counts.argmin())]!r}"
    if smallest < needed:
        raise ValueError(
            f"{name} has {smallest} training images, but {needed} are needed ({what_for}): "
            "add images, give the splits as folders, or set validation=0"
        )
