"""Training, validation and test sets told apart, held out where they are missing, the same for the same seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.model_selection import KFold, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from torch import Tensor

from patchmerger.data.images import ImageSet
from patchmerger.data.settings import DataSettings
from patchmerger.data.streams import ImageStream

FOLDS = 5
"""Into how many parts data without a test set is divided: five seeds in a row test every image exactly once."""


@dataclass(frozen=True)
class Images:
    """A whole dataset, read and checked, not yet divided for a seed.

    Attributes:
        sets: Images by ``"train"`` and, where there are such splits, ``"validation"`` and ``"test"``.
        class_names: The name of each class number.
        skipped: The files that were left out, with the reason.
        settings: What it was read with.
        remarks: What a user should know, such as a folder that was not read.
    """

    sets: dict[str, ImageSet]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    settings: DataSettings
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ImageSplits:
    """The images of one run.

    Attributes:
        train: To learn from.
        validation: To watch and choose by, or None.
        test: For the final number, to be looked at once.
        class_names: The name of each class number.
        multi_label: Whether an image may have several labels (targets are zeros and ones then).
        skipped: The files that were left out, with the reason.
        description: In words: source, numbers of images and classes, where each set comes from.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    class_names: tuple[str, ...]
    multi_label: bool
    skipped: tuple[str, ...]
    description: str

    @property
    def to_look_at(self) -> ImageSet:
        """A set that some images may be taken from: validation, or else train, or test where train is streamed."""
        if self.validation is not None:
            return self.validation
        return self.test if isinstance(self.train, ImageStream) else self.train


@dataclass(frozen=True)
class Division:
    """The three sets of one run.

    Attributes:
        train: To learn from.
        validation: To watch and choose by, or None where none is wanted.
        test: For the final number.
        how: In words, where the three come from.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    how: str


def divide(
    sets: dict[str, ImageSet], class_names: Sequence[str], *, validation: float = 0.1, seed: int = 0
) -> Division:
    """Divides the splits of a dataset into training, validation and test sets.

    | splits that are there | validation set | test set |
    |---|---|---|
    | train, validation, test | as it is | as it is |
    | train, test | held out of train | as it is |
    | train, validation | held out of train | the validation split |
    | train | held out of train | held out of train |

    So a test set is never the one that choices were made by. What is held out has the classes in train's proportions
    (with several labels an image it is drawn without regard to them). A test set that must be held out is fold
    ``seed % 5`` of five, drawn anew every five seeds; the validation set is drawn from the rest.

    Args:
        sets: The splits that are there, by ``"train"``, ``"validation"`` and ``"test"``.
        class_names: The name of each class, for messages.
        validation: The share of the training images to hold out for validation; 0 for none.
        seed: What is held out depends on it and on nothing else.

    Returns:
        The three sets.

    Raises:
        ValueError: If there is no training split, ``validation`` or ``seed`` is out of range, there is only one
            class or a class without training images, or there are too few images to hold some out.
    """
    if "train" not in sets:
        raise ValueError(f"there is no training split; found: {', '.join(sets) or 'none'}")
    if not 0 <= validation <= 0.5:
        raise ValueError(f"validation must be a share from 0 to 0.5 of the training images, got {validation}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    for name, images in sets.items():
        _check_classes(name, images.targets, class_names)
    train, given, test = sets["train"], sets.get("validation"), sets.get("test")
    how = ["test split as given"]
    if test is None and given is not None:
        test, given = given, None
        how = ["the validation split is the test set"]
    elif test is None:
        train, test = _fold(train, class_names, seed)
        how = [f"test set is fold {seed % FOLDS + 1} of {FOLDS} of train"]
    if given is not None:
        how.append("validation split as given")
    elif validation > 0:
        train, given = _hold_out(train, class_names, validation, seed)
        how.append(f"validation set is {validation:g} of train")
    else:
        how.append("no validation set")
    return Division(train, given, test, f"{', '.join(how)} (seed {seed})")


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
        raise ValueError(f"no training images of {len(empty)} classes: {', '.join(empty[:10])}")


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
            f"take at least {math.ceil(100 * classes / len(images)) / 100:.2f}, or 0 for no validation set"
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
