"""The datasets of torchvision.datasets, where their files are already there."""

import inspect
from pathlib import Path
from typing import Any

import torch
import torchvision.datasets
from PIL import Image

from patchmerger.data.loading import EncodedSet

_SPLITS = {
    "train": ("train", "trainval"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}


class Items:
    """The images of a torchvision dataset.

    Args:
        dataset: A dataset of (PIL image, label) pairs.
        name: What to call it in messages.
    """

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self._name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Image.Image:
        """The picture that torchvision makes of image ``index``."""
        image: Image.Image = self.dataset[index][0]
        return image

    def name(self, index: int) -> str:
        """The dataset and the index."""
        return f"image {index} of {self._name}"


def read_torchvision(name: str, root: Path) -> tuple[dict[str, EncodedSet], tuple[str, ...], list[str]]:
    """Reads a dataset that torchvision knows; nothing is downloaded.

    Args:
        name: A class of ``torchvision.datasets``, such as ``"CIFAR100"``.
        root: The folder that torchvision expects the files in.

    Returns:
        The splits by name, the class names, and remarks for the user (none).

    Raises:
        ValueError: If torchvision has no such dataset, or it has no class labels.
        FileNotFoundError: If the files are not there.
    """
    kind = getattr(torchvision.datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        known = ", ".join(n for n in torchvision.datasets.__all__ if n[0].isupper())
        raise ValueError(f"torchvision.datasets has no dataset {name!r}; it has {known}")
    parts = {split: part for split in _SPLITS if (part := _open_split(kind, name, root, split)) is not None}
    if "train" not in parts:
        raise FileNotFoundError(_not_there(kind, name, root))
    class_names = getattr(parts["train"], "classes", None)
    labels = {split: _labels(part, name) for split, part in parts.items()}
    if class_names is None:
        class_names = sorted({label for split in labels.values() for label in split})
        numbers = {label: number for number, label in enumerate(class_names)}
        labels = {split: [numbers[label] for label in values] for split, values in labels.items()}
    splits = {
        split: EncodedSet(Items(part, f"torchvision's {name} {split}"), torch.tensor(labels[split]))
        for split, part in parts.items()
    }
    return splits, tuple(str(label) for label in class_names), []


def _open_split(kind: Any, name: str, root: Path, split: str) -> Any:
    options = inspect.signature(kind).parameters
    arguments: list[dict[str, Any]]
    if "split" in options:
        arguments = [{"split": value} for value in _SPLITS[split]]
    elif "train" in options:
        arguments = [{"train": split == "train"}] if split != "validation" else []
    else:
        arguments = [{}] if split == "train" else []
    for keywords in arguments:
        if "download" in options:
            keywords["download"] = False
        try:
            return kind(root, **keywords)
        except ValueError:  # the dataset has no split of this name
            continue
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(_not_there(kind, name, root)) from error
    return None


def _not_there(kind: Any, name: str, root: Path) -> str:
    folder = root / getattr(kind, "base_folder", "")
    files = [file for file, *_ in [*getattr(kind, "train_list", []), *getattr(kind, "test_list", [])]]
    missing = [str(folder / file) for file in files if not (folder / file).exists()]
    return (
        f"torchvision's {name} is not complete under root={str(root)!r}; "
        f"missing: {', '.join(missing) or f'its files in {folder}'}. "
        f"Fetch it once with torchvision.datasets.{name}({str(root)!r}, download=True) where that class offers it, "
        "or give the folder that holds it as root"
    )


def _labels(dataset: Any, name: str) -> list[Any]:
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return values.tolist() if hasattr(values, "tolist") else list(values)
    labels = [dataset[index][1] for index in range(len(dataset))]
    if not all(isinstance(label, int | str) for label in labels):
        raise ValueError(f"torchvision's {name} has no class labels, but {type(labels[0]).__name__}")
    return labels
