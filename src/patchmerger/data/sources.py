"""What a source names: built-in digits, torchvision, a folder, a table on disk, a dataset of the Hub."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from patchmerger.data.folders import read_folder
from patchmerger.data.loading import EncodedSet
from patchmerger.data.tables import read_table
from patchmerger.data.vision import read_torchvision

_TORCHVISION = "torchvision:"
_TABLES = ("*.parquet", "*/*.parquet", "*.tar", "*/*.tar")
_FORMS = (
    '"digits" (built in), "torchvision:NAME" (such as torchvision:CIFAR10), '
    "the path of a folder (of class folders, of parquet files or WebDataset shards, or saved by "
    "datasets.save_to_disk), "
    'or "owner/name" of a dataset on the Hugging Face Hub'
)


@dataclass(frozen=True)
class Source:
    """A dataset that is found but not decoded.

    Attributes:
        splits: Images and targets, by ``"train"`` and, where there are such splits, ``"validation"`` and ``"test"``.
        class_names: The name of each class number.
        remarks: What a user should know, such as a folder that is not read.
    """

    splits: dict[str, EncodedSet]
    class_names: tuple[str, ...]
    remarks: tuple[str, ...]


class Arrays:
    """Greyscale images that are already arrays.

    Args:
        pixels: uint8 (n, H, W).
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Image.Image:
        """Image ``index`` as a picture."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Its number."""
        return f"digit {index}"


def read_source(
    source: str,
    *,
    root: str | Path | None = None,
    subset: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Source:
    """Finds the splits of a dataset; the first of these that fits.

    1. ``"digits"``: scikit-learn's 1,797 scans of handwritten digits, 8×8 pixels, no files needed.
    2. ``"torchvision:NAME"``: the class NAME of ``torchvision.datasets``, never downloaded.
    3. The path of a folder: saved by ``datasets.save_to_disk``, or with parquet files or WebDataset shards (in the
       layout that ``datasets.load_dataset`` reads), or of class folders, optionally within train, val and test folders.
    4. ``"owner/name"``: the folder ``$PATCHMERGER_DATA/name`` if there is one, else the Hugging Face Hub.

    Args:
        source: What to read.
        root: For torchvision, the folder of its files; ``$PATCHMERGER_DATA`` by default.
        subset: For a dataset of the Hub, its configuration.
        image: For tables, the image column where there are several.
        label: For tables, the label column where there are several.

    Returns:
        The splits, with a ``"train"`` among them.

    Raises:
        ValueError: If the source is none of these, or its contents do not make a labelled training split.
        FileNotFoundError: If its files are not there.
    """
    shelf = os.environ.get("PATCHMERGER_DATA")
    if source == "digits":
        splits, names, remarks = _digits()
    elif source.startswith(_TORCHVISION):
        folder = root or shelf
        if folder is None:
            raise ValueError(f"{source} needs root, the folder that holds its files (or set PATCHMERGER_DATA)")
        splits, names, remarks = read_torchvision(source.removeprefix(_TORCHVISION), Path(folder).expanduser())
    elif source and Path(source).expanduser().is_dir():
        splits, names, remarks = _local(Path(source).expanduser(), image, label)
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        kind = "a file, not a folder" if Path(source).expanduser().is_file() else "neither known nor an existing folder"
        raise ValueError(f"source {source!r} is {kind}. Understood are: {_FORMS}")
    elif shelf and (on_shelf := Path(shelf).expanduser() / source.split("/")[1]).is_dir():
        splits, names, remarks = _local(on_shelf, image, label)
    else:
        splits, names, remarks = read_table(_from_hub(source, subset), image=image, label=label)
    if "train" not in splits:
        raise ValueError(f"source {source!r} has no training split; found: {', '.join(splits)}")
    return Source(splits, names, tuple(remarks))


def _digits() -> tuple[dict[str, EncodedSet], tuple[str, ...], list[str]]:
    values, targets = load_digits(return_X_y=True)
    pixels = (values.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    return (
        {"train": EncodedSet(Arrays(pixels), torch.from_numpy(targets).long())},
        tuple("0123456789"),
        [],
    )


def _local(
    path: Path, image: str | None, label: str | None
) -> tuple[dict[str, EncodedSet], tuple[str, ...], list[str]]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return read_table(datasets.load_from_disk(str(path)), image=image, label=label)
    if any(next(path.glob(pattern), None) for pattern in _TABLES):
        return read_table(datasets.load_dataset(str(path)), image=image, label=label)
    return read_folder(path)


def _from_hub(name: str, subset: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError) as error:  # not there, no network, or a subset must be chosen
        raise FileNotFoundError(
            f"dataset {name!r} is neither a folder here, nor in $PATCHMERGER_DATA "
            f"({os.environ.get('PATCHMERGER_DATA', 'not set')}), and the Hugging Face Hub did not give it: {error}. "
            f"Understood are: {_FORMS}"
        ) from error
