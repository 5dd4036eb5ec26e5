"""Datasets that torchvision knows by name: which splits a class has, and its labels; nothing is downloaded."""

from __future__ import annotations

import inspect
from operator import itemgetter
from pathlib import Path
from typing import Any

import torchvision.datasets
from torchvision.datasets import EMNIST, VisionDataset

from patchmerger.data.decoding import Encoded, EncodedDataset, EncodedSet
from patchmerger.data.labels import Classes, agreeing_labels

_SPLITS = {
    "train": ("train", "trainval", "train-standard"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
_NO_CLASS = "N/A"  # the name of number 0 in EMNIST's letters, which begin with 1


def open_torchvision(name: str, root: Path, subset: str | None = None) -> EncodedDataset:
    """The class ``name`` of ``torchvision.datasets``, where its files are already there.

    Args:
        name: The class, such as ``"CIFAR10"``.
        root: The folder that holds its files.
        subset: For EMNIST, which of its sets of characters.

    Raises:
        ValueError: There is no such class, or it takes more than a folder and a split; or a ``subset`` that is not one.
        FileNotFoundError: Files are missing.
    """
    kind = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, VisionDataset) and kind is not VisionDataset):
        known = ", ".join(n for n in torchvision.datasets.__all__ if n[0].isupper() and n != "VisionDataset")
        raise ValueError(f"torchvision.datasets has no dataset {name!r}; it has {known}")
    fixed = _fixed_arguments(kind, name, subset)
    parts = {split: part for split in _SPLITS if (part := _open_split(kind, root, split, fixed)) is not None}
    if "train" not in parts:
        raise FileNotFoundError(_not_there(kind, root, fixed))
    labels = {split: _labels(part) for split, part in parts.items()}
    names = getattr(parts["train"], "classes", None)
    declared = None if names is None else [str(name) for name in names]  # of ImageNet tuples
    if declared and _NO_CLASS in declared:
        labels = {split: [declared[label] for label in of_split] for split, of_split in labels.items()}
        declared = None
    classes = Classes.of(declared, [label for values in labels.values() for label in values], f"labels of {name}")
    splits = {
        split: EncodedSet(
            Encoded(part, f"torchvision's {name} {split}", itemgetter(0)), classes.targets(labels[split], split)
        )
        for split, part in parts.items()
    }
    return EncodedDataset(splits, classes.names)


def _fixed_arguments(kind: Any, name: str, subset: str | None) -> dict[str, Any]:
    """What the class is given for every split alike."""
    if kind is EMNIST:
        if subset not in EMNIST.splits:
            raise ValueError(
                f"subset ({subset!r}) must say which characters of torchvision:EMNIST: {', '.join(EMNIST.splits)}"
            )
        return {"split": subset}
    if subset is not None:
        raise ValueError(f"subset ({subset!r}) must be left out: torchvision:{name} has no subsets, only EMNIST has")
    options = inspect.signature(kind).parameters.values()
    needed = [o.name for o in options if o.default is o.empty and o.kind is o.POSITIONAL_OR_KEYWORD]
    if needed != ["root"]:
        wants = f"needs {', '.join(needed[1:])} as well as a folder" if needed else "reads no files"
        raise ValueError(
            f"torchvision:{name} {wants}, which a source cannot say: make the dataset in Python and hand it over, such "
            f'as fit(recipe, {{"train": torchvision.datasets.{name}(…)}})'
        )
    return {}


def _open_split(kind: Any, root: Path, split: str, fixed: dict[str, Any]) -> Any:
    options = inspect.signature(kind).parameters
    arguments: list[dict[str, Any]]
    if "split" in options and not fixed:
        arguments = [{"split": value} for value in _SPLITS[split]]
    elif "train" in options or fixed:
        arguments = [{**fixed, "train": split == "train"}] if split != "validation" else []
    else:
        arguments = [{}] if split == "train" else []
    for keywords in arguments:
        try:
            return kind(root, **keywords, **({"download": False} if "download" in options else {}))
        except ValueError:  # the dataset has no split of this name
            continue
        except ModuleNotFoundError as error:
            library = error.name
            raise ValueError(f"torchvision:{kind.__name__} needs {library}: pip install {library}") from error
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(_not_there(kind, root, keywords)) from error
    return None


def _not_there(kind: Any, root: Path, keywords: dict[str, Any]) -> str:
    name, folder = kind.__name__, root / getattr(kind, "base_folder", "")
    files = [file for file, *_ in [*getattr(kind, "train_list", []), *getattr(kind, "test_list", [])]]
    missing = [str(folder / file) for file in files if not (folder / file).exists()]
    arguments = "".join(f"{key}={value!r}, " for key, value in keywords.items())
    return (
        f"torchvision's {name} is not complete under root={str(root)!r}; "
        f"missing: {', '.join(missing) or f'its files in {folder}'}. "
        f'Fetch it once, where that class offers it, with python -c "from torchvision.datasets import {name}; '
        f'{name}({str(root)!r}, {arguments}download=True)", '
        "or give the folder that holds it as root"
    )


def _labels(dataset: Any) -> list[Any]:
    """Those that the dataset keeps, where they are what its items have: QMNIST keeps more of each."""
    known = agreeing_labels(dataset, lambda index: dataset[index][1])
    return [dataset[index][1] for index in range(len(dataset))] if known is None else known
