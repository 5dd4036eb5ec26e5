"""People's own datasets: of torch, of the Hugging Face library, by split in a dict, behind a DataLoader."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.images import ImageSet, load_sets
from patchmerger.data.labels import Classes, agreeing_labels
from patchmerger.data.settings import DataSettings, OwnData
from patchmerger.data.splits import SPLIT_NAMES, ImageDataset, warn_of
from patchmerger.data.tables import LABELS, class_label, only_column, picture_in, read_table
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu

OwnDataset: TypeAlias = Any
"""A map-style dataset of torch, a Dataset of the Hugging Face library, a DataLoader, or a dict of these by split."""

_IMAGE_KEYS = ("image", "pixel_values", "img", "images")
_LABEL_KEYS = ("label", "labels", "target", "targets", "cls")
_LOOKED_AT = 8
_MOST = 30.0  # of a normalised value: (1 - 0) / 0.03
_FORMS = (
    "a source such as 'digits' or a folder, DataSettings, a torch Dataset of (image, label), a Dataset of the Hugging "
    "Face library, a DataLoader, or a dict of datasets by train, validation and test"
)


class DatasetImages:
    """The images of a map-style dataset, read anew each time, so that what it draws at random stays so."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.columns: tuple[str, str | None] | None = None  # of a table without a transform of its own
        if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
            labelled = any(name in LABELS or class_label(feature) for name, feature in dataset.features.items())
            self.columns = only_column(dataset, "image"), only_column(dataset, "label") if labelled else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        """Image ``index``: uint8 (3, H, W), or float32 (3, H, W) where the dataset gives floats."""
        return self.item(index)[0]

    def item(self, index: int) -> tuple[Tensor, Any]:
        """Image ``index`` and its label; None where there is none."""
        where, item = f"image {index} of {self.name}", self.dataset[index]
        if self.columns is not None:
            image, label = item[self.columns[0]], None if self.columns[1] is None else item[self.columns[1]]
        elif isinstance(self.dataset, ImageSet):
            image, label = item, self.dataset.targets[index].tolist()
        else:
            image, label = _parts(item, where)
        return as_image(image, where), label


def read_own(data: OwnDataset, *, validation: float = 0.1) -> ImageDataset:
    """Makes a dataset of what people hand over; floats are passed on as they are, other images as uint8.

    A lone dataset is the training split, of which others are held out.

    Raises:
        TypeError: Something else, or items that are no images with labels; the message says what would do.
        ValueError: Labels that are no classes, or classes that differ between the splits.
    """
    sets = open_own(data)
    parts = {split: images.dataset for split, images in sets.items()}
    name = _name(parts["train"])
    if sets["train"].columns is not None and sets["train"].columns[1] is not None:
        table = read_table(parts)
        loaded, _, losses = load_sets(table.splits, DataSettings())
        remarks = (*table.remarks, *losses)
        warn_of(name, remarks, table.class_names)
        return ImageDataset(name, loaded, table.class_names, validation, (), remarks)
    labels = {split: _labels(images) for split, images in sets.items()}
    flat = [label for some in labels.values() for label in some]
    if all(label is None for label in flat):
        none = {split: torch.zeros(len(images), dtype=torch.long) for split, images in sets.items()}
        return ImageDataset(name, {s: ImageSet(images, none[s]) for s, images in sets.items()}, (), validation)
    declared = {split: _declared(part) for split, part in parts.items()}
    if len(set(declared.values())) > 1:
        raise ValueError(f"the splits of {name} declare different classes: {declared}")
    classes = Classes.of(declared["train"], flat, f"labels of {name}")
    made = {split: ImageSet(images, classes.targets(labels[split], split)) for split, images in sets.items()}
    warn_of(name, [], classes.names)
    return ImageDataset(name, made, classes.names, validation)


def identify_own(data: OwnDataset) -> OwnData:
    """What a run's settings record of it: its class, the number of images, and a hash of some of them.

    The same images give the same hash in every process, though the dataset draws at random.
    """
    sets, digest = open_own(data), hashlib.sha256()
    for split, images in sets.items():
        with random_state_kept():
            for index in _some(images):
                seed_everything_on_cpu(key(index))
                pixels, label = images.item(index)
                digest.update(f"{split} {index} {tuple(pixels.shape)} {pixels.dtype} {label}".encode())
                digest.update(pixels.contiguous().numpy().tobytes())
    name = _name(sets["train"].dataset)
    return OwnData(name, {split: len(images) for split, images in sets.items()}, digest.hexdigest())


def open_own(data: OwnDataset) -> dict[str, DatasetImages]:
    """The images by train, validation and test, with the first of each looked at."""
    sets = {split: DatasetImages(part, f"{_name(part)} {split}") for split, part in _by_split(data).items()}
    for images in sets.values():
        if not len(images):
            raise ValueError(f"{images.name} is empty")
        with random_state_kept():
            _check_values(images.item(0)[0], f"image 0 of {images.name}")
    return sets


def _check_values(image: Tensor, where: str) -> None:
    """Refuse floats that no normalisation gives: they are passed on as they are."""
    if not image.is_floating_point():
        return
    if not bool(image.isfinite().all()):
        raise ValueError(f"{where} has values that are not finite")
    if float(image.abs().max()) > _MOST:
        raise ValueError(
            f"{where} has floats up to {float(image.abs().max()):g}, which are not normalised: give uint8 values from "
            "0 to 255, or (image / 255 - mean) / std"
        )


def as_image(image: Any, where: str) -> Tensor:
    """An image as a tensor: uint8 (3, H, W), or float32 (3, H, W) as it is.

    It may be a picture of PIL, a file, its bytes, or an array or tensor of uint8 or floats: (3, H, W), (H, W, 3) or
    (H, W), of one channel or with a fourth one for transparency, too. ``where`` is what to call it in messages.
    """
    if isinstance(image, dict) and {"bytes", "path"} <= image.keys():
        image = picture_in(image)
    if isinstance(image, str):
        image = Path(image)
    if isinstance(image, bytes | Path | Image.Image):
        try:
            return decode(image)
        except BadImageError as error:
            raise BadImageError(f"{where} cannot be decoded: {error}") from error
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image)
    if not isinstance(image, Tensor):
        raise TypeError(f"{where} is of {type(image).__name__}: {_WHAT_IMAGES}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise TypeError(f"{where} has values of {image.dtype}: {_WHAT_IMAGES}")
    if image.ndim == 2:
        image = image[None]
    if image.ndim == 3 and image.shape[0] not in (1, 3, 4) and image.shape[2] in (1, 3, 4):
        image = image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise TypeError(f"{where} has the shape {tuple(image.shape)}: {_WHAT_IMAGES}")
    image = image.expand(3, -1, -1) if image.shape[0] == 1 else image[:3]
    made: Tensor = image if image.dtype == torch.uint8 else image.float()
    return made


_WHAT_IMAGES = "give a picture of PIL, uint8 values from 0 to 255 (3, H, W), or floats that are normalised (3, S, S)"


def _by_split(data: OwnDataset) -> dict[str, Any]:
    """Map-style datasets by train, validation and test."""
    if not isinstance(data, Mapping):
        return {"train": _map_style(data)}
    names = ", ".join(map(str, data))
    if unknown := [name for name in data if str(name).lower() not in SPLIT_NAMES]:
        raise ValueError(f"data has the splits {names}; {unknown[0]!r} is not train, validation or test")
    sets = {SPLIT_NAMES[str(name).lower()]: _map_style(part) for name, part in data.items()}
    if len(sets) < len(data) or "train" not in sets:
        raise ValueError(f"data has the splits {names}: train is needed, and each of them once")
    return sets


def _map_style(data: Any) -> Any:
    if isinstance(data, DataLoader):
        return _behind(data)
    if isinstance(data, IterableDataset | datasets.IterableDataset | datasets.IterableDatasetDict):
        raise TypeError(
            f"data ({type(data).__name__}) can be read in order only: give a map-style dataset (with __len__ and "
            "__getitem__), or DataSettings(source, streaming=True) of shards or parquet files"
        )
    if isinstance(data, Tensor | np.ndarray):
        raise TypeError(f"data ({type(data).__name__}): put it into torch.utils.data.TensorDataset(images, labels)")
    if isinstance(data, str | bytes | tuple | Mapping) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise TypeError(f"data ({type(data).__name__}) must be {_FORMS}")
    return data


def _behind(loader: DataLoader[Any]) -> Any:
    """The dataset of a DataLoader, where nothing of the loader is lost but its batches."""
    if isinstance(loader.dataset, IterableDataset):
        return _map_style(loader.dataset)
    sampler = loader.sampler
    if loader.collate_fn is not default_collate or not isinstance(sampler, SequentialSampler | RandomSampler):
        lost = "sampler" if loader.collate_fn is default_collate else "collate_fn"
        raise TypeError(f"data (DataLoader) has a {lost} of its own, which would be lost: give its dataset, {_FORMS}")
    batches = loader.batch_sampler
    if batches is not None and not (
        type(batches) is BatchSampler and isinstance(batches.sampler, SequentialSampler | RandomSampler)
    ):
        raise TypeError(
            f"data (DataLoader) has a batch_sampler of its own, which would be lost: give its dataset, {_FORMS}"
        )
    warnings.warn(
        "data (DataLoader): its dataset is taken; order and size of the batches are those of the training", stacklevel=4
    )
    return loader.dataset


def _name(dataset: Any) -> str:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return type(dataset).__name__


def _parts(item: Any, where: str) -> tuple[Any, Any]:
    """Image and label of an item; None for a label that is not there."""
    if isinstance(item, Mapping) and not {"bytes", "path"} <= item.keys():
        images, labels = ([name for name in names if name in item] for names in (_IMAGE_KEYS, _LABEL_KEYS))
        if len(images) != 1 or len(labels) > 1:
            raise TypeError(
                f"{where} is a dict with the keys {', '.join(map(str, item))}: one of {', '.join(_IMAGE_KEYS)} is "
                f"needed, and at most one of {', '.join(_LABEL_KEYS)}"
            )
        return item[images[0]], item[labels[0]] if labels else None
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise TypeError(f"{where} has {len(item)} parts: (image, label) is needed")
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def _labels(images: DatasetImages) -> list[Any]:
    """All labels: the list of them that the dataset keeps, where it agrees with its items, else item by item."""
    with random_state_kept():
        if (known := agreeing_labels(images.dataset, lambda index: images.item(index)[1])) is not None:
            return known
        with progress_bar(f"labels of {images.name}", len(images)) as bar:
            labels = []
            for index in range(len(images)):
                labels.append(images.item(index)[1])
                bar.advance()
            return labels


def _some(images: DatasetImages) -> list[int]:
    indices: list[int] = torch.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).long().tolist()
    return indices


def _declared(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes, where the dataset knows them."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, datasets.Dataset):
        found = [
            names for key, feature in dataset.features.items() if key in _LABEL_KEYS and (names := class_label(feature))
        ]
        return found[0] if len(found) == 1 else None
    names = getattr(dataset, "classes", None)
    strings = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if strings and names else None
