"""Datasets of the Hugging Face library: which column is the image, which the label, which split is which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import datasets
import torch
from torch import Tensor

from patchmerger.data.decoding import Picture
from patchmerger.data.folders import SPLIT_NAMES
from patchmerger.data.images import EncodedDataset, EncodedSet

LABELS = ("label", "labels", "cls")
"""Names of a label column that says nothing of its kind; WebDataset shards have ``cls``."""


class TableColumn:
    """The images of one column.

    Args:
        column: A dataset with one column, of images that are not decoded.
        split: The name of the split, for messages.
    """

    def __init__(self, column: datasets.Dataset, split: str) -> None:
        self.column = column
        self.split = split
        self._image = column.column_names[0]

    def __len__(self) -> int:
        return len(self.column)

    def read(self, index: int) -> Picture:
        """The bytes of the image in row ``index``."""
        return picture_in(self.column[index][self._image])

    def name(self, index: int) -> str:
        """The split and the row, with the path that is stored there if there is one."""
        item = self.column[index][self._image]
        return f"row {index} of {self.split}" + (f" ({item['path']})" if item and item["path"] else "")


def picture_in(item: Any) -> Picture:
    """The picture in a cell of an image column that is not decoded; no bytes at all for an empty cell."""
    if item is None:
        return b""
    if item["bytes"] is not None:
        return cast(bytes, item["bytes"])
    if Path(item["path"]).is_file():
        return Path(item["path"]).read_bytes()
    return cast(Picture, datasets.Image().decode_example(item))


def read_table(
    table: datasets.Dataset | datasets.DatasetDict, *, image: str | None = None, label: str | None = None
) -> EncodedDataset:
    """Finds images and labels in a dataset.

    Args:
        table: A dataset, or several by split. A lone one is the training split.
        image: The image column; by default the only one with the ``Image`` feature.
        label: The label column; by default the only one of class labels, or else ``label`` or ``labels``.

    Returns:
        The dataset, not decoded.

    Raises:
        ValueError: If a column is missing or ambiguous, a label is missing, or the classes of two splits differ.
    """
    named = dict(table) if isinstance(table, datasets.DatasetDict) else {"train": table}
    known = {name: SPLIT_NAMES[name.lower()] for name in named if name.lower() in SPLIT_NAMES}
    remarks = [f"splits not read: {', '.join(rest)}"] if (rest := [n for n in named if n not in known]) else []
    if "train" not in known.values():
        raise ValueError(f"there is no split named train; found: {', '.join(named)}")
    first = named[next(name for name, split in known.items() if split == "train")]
    image = image or only_column(first, "image", usual=("image",))
    label = label or only_column(first, "label", usual=LABELS)
    for column in (image, label):
        for name in known:
            if column not in named[name].column_names:
                raise ValueError(
                    f"split {name} has no column {column!r}; its columns are {', '.join(named[name].column_names)}"
                )
    values = {name: named[name].select_columns([label]).with_format(None)[:][label] for name in known}
    for name in [name for name, split in known.items() if split == "test"]:
        if all(value in (None, -1) for value in values[name]):
            remarks.append(f"split {name} has no labels and is not read")
            del known[name], values[name]
    class_names = _class_names(named, list(known), label, values)
    splits: dict[str, EncodedSet] = {}
    for name, split in known.items():
        if split in splits:
            raise ValueError(f"more than one split would be {split}; found: {', '.join(named)}")
        column = named[name].select_columns([image]).cast_column(image, datasets.Image(decode=False))
        targets = targets_of(values[name], class_names, name, named[name].features[label])
        splits[split] = EncodedSet(TableColumn(column.with_format(None), name), targets)
    return EncodedDataset(splits, class_names, tuple(remarks))


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def _is_label(feature: Any) -> bool:
    return _class_label(feature) is not None


def _class_label(feature: Any) -> datasets.ClassLabel | None:
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def only_column(
    table: datasets.Dataset | datasets.IterableDataset, what: Literal["image", "label"], *, usual: tuple[str, ...]
) -> str:
    """The one column that is the image or the label.

    Args:
        table: Its features must be known.
        what: Which of both.
        usual: Names to look for where no column has the feature.

    Raises:
        ValueError: There is none, or several.
    """
    fits = _is_image if what == "image" else _is_label
    found = [name for name, feature in table.features.items() if fits(feature)]
    if not found:
        found = [name for name in usual if name in table.column_names][:1]
    if len(found) == 1:
        return str(found[0])
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
    many = f"{len(found)} columns may be the {what}: {', '.join(found)}" if found else f"no column is the {what}"
    raise ValueError(f"{many}. Name it with the option {what!r}. The columns are {columns}")


def _class_names(
    named: dict[str, datasets.Dataset], splits: list[str], label: str, values: dict[str, list[Any]]
) -> tuple[str, ...]:
    declared = {name: _class_label(named[name].features[label]) for name in splits}
    first = splits[0]
    if feature := declared[first]:
        for name, other in declared.items():
            if other is None or other.names != feature.names:
                raise ValueError(f"the classes of the splits {first} and {name} differ in column {label!r}")
        return tuple(feature.names)
    return class_names_of(None, [value for rows in values.values() for value in rows], label)


def class_names_of(feature: Any, values: Sequence[Any], label: str) -> tuple[str, ...]:
    """The classes that a label column declares, else those of its ``values``.

    Args:
        feature: Of the column.
        values: A label an image, or a list of them.
        label: The column, for messages.

    Raises:
        ValueError: The values are neither whole numbers nor strings.
    """
    if declared := _class_label(feature):
        return tuple(declared.names)
    flat = [v for row in values for v in (row if isinstance(row, list) else [row])]
    if any(not isinstance(value, int | str) for value in flat):
        raise ValueError(f"column {label!r} holds neither class labels, whole numbers nor strings")
    return tuple(str(value) for value in sorted(set(flat)))


def targets_of(values: list[Any], class_names: tuple[str, ...], split: str, feature: Any) -> Tensor:
    """Class numbers, int64 (n,), or float32 zeros and ones (n, C) where each value is a list.

    Args:
        values: A label an image, or a list of them.
        class_names: Of the classes.
        split: The name of the split, for messages.
        feature: Of the column.

    Raises:
        ValueError: A label is none of the classes.
    """
    if _class_label(feature) is not None:
        numbers: dict[Any, int] = {number: number for number in range(len(class_names))}
    else:
        numbers = {name: number for number, name in enumerate(class_names)}
        numbers |= {int(name): number for name, number in numbers.items() if name.lstrip("-").isdecimal()}
    try:
        if values and isinstance(values[0], list):
            hot = torch.zeros(len(values), len(class_names))
            for row, labels in enumerate(values):
                hot[row, [numbers[value] for value in labels]] = 1
            return hot
        return torch.tensor([numbers[value] for value in values])
    except (KeyError, TypeError) as error:
        missing = sum(1 for value in values if value in (None, -1))
        raise ValueError(
            f"split {split} has labels that are no class ({missing} of {len(values)} images have none): {error}"
        ) from error
