"""From labels of any kind that has classes to class numbers: names, whole numbers, booleans, lists of them."""

from __future__ import annotations

import enum
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

_LOOKED_AT = 8

Label = str | int | bool | None
"""A label in its plain form; None where there is none."""


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset: their names, and the number of each label.

    ``kind`` says whether labels are ``"one"`` an image, ``"several"`` in a list, or ``"hot"``: a yes or no for each
    class; ``column`` what holds them, for messages.
    """

    names: tuple[str, ...]
    numbers: dict[Label, int]
    kind: str
    column: str

    @staticmethod
    def of(names: Sequence[str] | None, values: Sequence[Any], column: str) -> Classes:
        """The classes that are declared, else those of all values.

        ``names`` are declared: the name of each class number, which are then the labels. Values are a label an image,
        or a list of them, or for each class whether the image has it.
        """
        rows = [row for value in values if (row := _several(value)) is not None]
        if rows and len(rows) < sum(not _missing(value) for value in values):
            raise ValueError(f"column {column!r} holds a label for some images and a list of labels for others")
        if _are_hot(rows, None if names is None else len(names)):
            names = [str(number) for number in range(len(rows[0]))] if names is None else names
            return Classes(tuple(names), {}, "hot", column)
        kind = "several" if rows else "one"
        if names is not None:
            return Classes(tuple(names), {number: number for number in range(len(names))}, kind, column)
        found = [plain_label(value, column) for value in ([v for row in rows for v in row] if rows else values)]
        labels: list[Any] = [label for label in found if label is not None]
        types = sorted({type(label).__name__ for label in labels})
        if len(types) > 1:
            raise ValueError(f"column {column!r} holds {' and '.join(types)}: labels must be of one type")
        ordered = sorted(set(labels))
        return Classes(tuple(map(str, ordered)), {label: n for n, label in enumerate(ordered)}, kind, column)

    def targets(self, values: Sequence[Any], split: str) -> Tensor:
        """Class numbers, int64 (n,), or float32 zeros and ones (n, C) where an image may have several labels."""
        if self.kind == "one":
            return torch.tensor([self._number(value, values, split) for value in values], dtype=torch.long)
        hot = torch.zeros(len(values), len(self.names))
        for row, value in enumerate(values):
            labels = _several(value)
            if labels is None:
                raise self._missing_labels(values, split)
            if self.kind == "hot":
                if len(labels) != len(self.names):
                    raise ValueError(f"split {split} has lists of {len(labels)} and of {len(self.names)} labels")
                hot[row] = torch.tensor([float(label) for label in labels])
            elif labels:
                hot[row, [self._number(label, values, split) for label in labels]] = 1
        return hot

    def _number(self, value: Any, values: Sequence[Any], split: str) -> int:
        label = plain_label(value, self.column)
        if label in self.numbers and label is not None:
            return self.numbers[label]
        if label is None or label == -1:
            raise self._missing_labels(values, split)
        raise ValueError(f"split {split} has the label {label!r} in column {self.column!r}, which is no class")

    def _missing_labels(self, values: Sequence[Any], split: str) -> ValueError:
        missing = sum(any(_missing(v) or v == -1 for v in _several(value) or [value]) for value in values)
        return ValueError(
            f"split {split} has labels that are no class ({missing} of {len(values)} images have none in column "
            f"{self.column!r})"
        )


def alike_names(names: Sequence[str]) -> str | None:
    """What to say of the first names that differ in case, blanks or the form of accents alone; ``None`` for none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), name)
        if other != name:
            return f"{other!a} and {name!a} differ in case, blanks or the form of accents alone"
    return None


def doubtful_classes(names: Sequence[str]) -> list[str]:
    """Remarks on classes that are counted as they are, but may not be meant so."""
    remarks = [f"the classes {alike}"] if (alike := alike_names(names)) else []
    if "-1" in names and len(names) > 2:
        remarks.append("the label -1, which often means none, counts as a class")
    return remarks


def kept_labels(dataset: Any) -> Sequence[Any] | None:
    """The list of labels that a map-style dataset keeps beside its items; ``None`` without one.

    Nor where a ``target_transform`` of torchvision may give other ones.
    """
    if isinstance(dataset, Subset):
        whole = kept_labels(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    for name in ("targets", "labels", "_labels"):
        kept = getattr(dataset, name, None)
        if isinstance(kept, list | tuple | Tensor | np.ndarray):
            return kept.tolist() if isinstance(kept, Tensor | np.ndarray) else kept
    return None


def agreeing_labels(dataset: Any, label_of: Callable[[int], Any]) -> list[Any] | None:
    """The labels that a dataset keeps, where some that are looked at are those of its items, ``label_of(index)``."""
    kept, count = kept_labels(dataset), len(dataset)
    if kept is None or len(kept) != count:
        return None
    some = torch.linspace(0, count - 1, min(count, _LOOKED_AT)).long().tolist()
    return list(kept) if all(_same(kept[index], label_of(index)) for index in some) else None


def _same(first: Any, second: Any) -> bool:
    plain = [v.tolist() if isinstance(v, Tensor | np.ndarray | np.generic) else v for v in (first, second)]
    return type(plain[0]) is type(plain[1]) and bool(plain[0] == plain[1])


def plain_label(value: Any, column: str) -> Label:
    """One label in its plain form: a string, a whole number or a boolean; None where it is missing."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        value = value.name
    if _missing(value):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str | int):
        return value
    if isinstance(value, float):
        raise ValueError(f"column {column!r} holds numbers that are not whole ({value:g}), which are no classes")
    raise ValueError(f"column {column!r} holds {type(value).__name__}, not class labels, whole numbers or strings")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value))


def _several(value: Any) -> list[Any] | None:
    """The labels of an image that may have several, or None for one label."""
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim > 1:
            raise ValueError(f"labels of shape {tuple(value.shape)} are no classes: one an image, or a list, is needed")
        return value.tolist() if value.ndim == 1 else None
    return list(value) if isinstance(value, list | tuple | set | frozenset) else None


def _are_hot(rows: list[list[Any]], count: int | None) -> bool:
    """Whether each list says yes or no for each class, rather than naming the classes of an image."""
    if not rows or len({len(row) for row in rows}) > 1 or len(rows[0]) < 2 or len(rows[0]) != (count or len(rows[0])):
        return False
    values = [value for row in rows for value in row]
    if any(isinstance(value, str) or value not in (0, 1) for value in values):
        return False
    if any(isinstance(value, bool | float) for value in values) or any(len(set(row)) < len(row) for row in rows):
        return True
    return len(rows[0]) == 2  # [0, 1] and [1, 0]: as names they would say both classes of every image
