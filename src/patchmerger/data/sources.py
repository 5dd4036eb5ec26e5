"""What a source names: built-in digits, torchvision, a folder, a table on disk, a dataset of the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from patchmerger.data.decoding import Encoded, EncodedDataset, EncodedSet
from patchmerger.data.folders import images_below, local_folder, read_folder
from patchmerger.data.settings import DataSettings
from patchmerger.data.tables import METADATA, check_parquet, read_table
from patchmerger.data.torchvision_sets import open_torchvision

_TORCHVISION = "torchvision:"
_TABLES = ("*.parquet", "*/*.parquet", "*.tar", "*/*.tar")
_FORMS = (
    '"digits" (built in), "torchvision:NAME" (such as torchvision:CIFAR10), '
    "the path of a folder (of class folders, of parquet files or WebDataset shards, or saved by "
    "datasets.save_to_disk), "
    'or "owner/name" of a dataset on the Hugging Face Hub'
)


def open_source(data: DataSettings) -> EncodedDataset:
    """Finds the splits of a dataset, a ``"train"`` among them; the first of these that fits.

    1. ``"digits"``: scikit-learn's 1,797 scans of handwritten digits, 8×8 pixels, no files needed.
    2. ``"torchvision:NAME"``: the class NAME of ``torchvision.datasets``, never downloaded.
    3. The path of a folder: saved by ``datasets.save_to_disk``, or with parquet files or WebDataset shards (in the
       layout that ``datasets.load_dataset`` reads), or of class folders, optionally within train, val and test folders.
    4. ``"name"`` or ``"owner/name"``: the folder ``$PATCHMERGER_DATA/name``.
    5. ``"owner/name"``: the Hugging Face Hub.

    Raises:
        ValueError: If the source is none of these, or its contents do not make a training split.
        FileNotFoundError: If its files are not there.
    """
    source, data_root = data.source, os.environ.get("PATCHMERGER_DATA")
    if source == "digits":
        found = _digits()
        if Path("digits").is_dir():
            found = replace(
                found, remarks=("the built-in digits are read, not the folder digits: write ./digits for it",)
            )
    elif source.startswith(_TORCHVISION):
        folder = data.root or data_root
        if folder is None:
            raise ValueError(f"{source} needs root, the folder that holds its files (or set PATCHMERGER_DATA)")
        found = open_torchvision(source.removeprefix(_TORCHVISION), Path(folder).expanduser(), data.subset)
    elif path := local_folder(source):
        found = _open_folder(path, data)
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        kind = "a file, not a folder" if Path(source).expanduser().is_file() else "neither known nor an existing folder"
        raise ValueError(f"source {source!r} is {kind}. Understood are: {_FORMS}")
    else:
        found = read_table(_from_hub(source, data.subset), image=data.image, label=data.label)
    if "train" not in found.splits:
        raise ValueError(f"source {source!r} has no training split; found: {', '.join(found.splits)}")
    return found


@cache
def _digits() -> EncodedDataset:
    values, targets = load_digits(return_X_y=True)
    pixels = (values.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    pictures = Encoded([Image.fromarray(digit) for digit in pixels], "digits")
    return EncodedDataset({"train": EncodedSet(pictures, torch.from_numpy(targets).long())}, tuple("0123456789"))


def _open_folder(path: Path, data: DataSettings) -> EncodedDataset:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return read_table(datasets.load_from_disk(str(path)), image=data.image, label=data.label)
    tables = [file for pattern in _TABLES for file in path.glob(pattern) if file.name not in METADATA]
    if not tables:
        return read_folder(path, data)
    if (image := next(images_below(path), None)) is not None:
        raise ValueError(
            f"{path} holds tables or shards ({tables[0].name}) and images ({image.relative_to(path)}): which are "
            "meant? Move one kind away"
        )
    check_parquet(path)
    try:
        builder = datasets.load_dataset_builder(str(path))
        builder.download_and_prepare()
        found = read_table(builder.as_dataset(), image=data.image, label=data.label)
    except (datasets.exceptions.DatasetsError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error.__cause__ or error}") from error
    used = {Path(file).resolve() for files in builder.config.data_files.values() for file in files}
    if unread := [file.name for file in tables if file.resolve() not in used]:
        found = replace(found, remarks=(*found.remarks, f"not read: {', '.join(unread[:5])}"))
    return found


def _from_hub(name: str, subset: str | None) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(name, subset)
    except (OSError, ValueError, RuntimeError) as error:  # not there, no network, or a subset must be chosen
        raise FileNotFoundError(
            f"dataset {name!r} is neither a folder here, nor in $PATCHMERGER_DATA "
            f"({os.environ.get('PATCHMERGER_DATA', 'not set')}), and the Hugging Face Hub did not give it: {error}. "
            f"Understood are: {_FORMS}"
        ) from error
