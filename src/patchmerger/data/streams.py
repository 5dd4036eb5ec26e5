"""Training images that are read in order and never held: WebDataset shards, parquet files, streamed Hub datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from patchmerger.data.decoding import Picture
from patchmerger.data.images import ImageSet
from patchmerger.data.tables import LABELS, class_names_of, only_column, picture_in, targets_of

Row = tuple[Picture, Any]
"""An encoded image and its label or labels."""


class ImageStream(ImageSet):
    """A training set that can only be read in order; asked for an image by its number, it refuses.

    Args:
        rows: The training split.
        image: The column of the images.
        label: The column of the labels; a dotted name reaches into one that holds several values.
        class_names: The name of each class number.
        samples: Images in an epoch.
        buffer: Images among which the next one is drawn, in each process that reads.
        skip_bad: Whether a bad image is replaced by another one of its batch instead of ending the run.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        *,
        image: str,
        label: str,
        class_names: tuple[str, ...],
        samples: int,
        buffer: int,
        skip_bad: bool,
    ) -> None:
        self.table = rows
        self.image, self.label = image, label
        self.class_names = class_names
        self.samples = samples
        self.buffer = buffer
        self.skip_bad = skip_bad
        self._pixels = None

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        raise TypeError("streamed images are read in order only: this needs data.streaming false")

    def __getattr__(self, name: str) -> Any:
        if name in ("targets", "rows", "images"):
            raise TypeError(f"streamed images have no {name} to look up: this needs data.streaming false")
        raise AttributeError(name)

    def shards(self, world_size: int) -> int:
        """Files that each of ``world_size`` processes reads; all of them where they cannot be shared out evenly."""
        count = int(self.table.num_shards)
        return count if count % world_size else count // world_size

    def read(self, seed: int, *, rank: int, world_size: int) -> Iterator[Row]:
        """The share of one process, once: files in an order of ``seed``, images drawn from a buffer.

        In a worker of a DataLoader, the worker's share of it. All shares together hold every image once.
        """
        shuffled = self.table.shuffle(seed=seed, buffer_size=self.buffer)
        for row in split_dataset_by_node(shuffled, rank=rank, world_size=world_size):
            yield picture_in(row[self.image]), field(row, self.label)

    def targets_of(self, labels: Sequence[Any]) -> Tensor:
        """Class numbers, int64 (n,), or float32 zeros and ones (n, C) with several labels an image."""
        feature = field(self.table.features, self.label)
        return targets_of(list(labels), self.class_names, "train", feature)


class Held:
    """Encoded images of an evaluation split, read once.

    Args:
        pictures: The images.
        split: The name of the split, for messages.
    """

    def __init__(self, pictures: list[Picture], split: str) -> None:
        self.pictures = pictures
        self.split = split

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Picture:
        """The bytes of image ``index``."""
        return self.pictures[index]

    def name(self, index: int) -> str:
        """The split and the number."""
        return f"image {index} of {self.split}"


def open_streams(source: str, subset: str | None) -> tuple[dict[str, datasets.IterableDataset], int | None]:
    """Finds the splits of a source as ``datasets.load_dataset`` does, without reading them.

    Args:
        source: A folder of tar or parquet files, ``"owner/name"`` of a dataset of the Hub (first looked for as the
            folder ``$PATCHMERGER_DATA/name``).
        subset: For a dataset of the Hub, its configuration.

    Returns:
        The splits by the names that they have there, and the number of training images where that is known.

    Raises:
        ValueError: The source is neither.
        FileNotFoundError: It has no such files, or the Hub did not give them.
    """
    place = _place(source)
    try:
        builder = datasets.load_dataset_builder(place, subset)
        streams = dict(builder.as_streaming_dataset())
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(f"data.source ({source}) cannot be streamed: {error}") from error
    return {str(name): _with_features(rows) for name, rows in streams.items()}, _count(builder)


def find_columns(rows: datasets.IterableDataset, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and labels, as named or as they can be told."""
    image = image or only_column(rows, "image", usual=("image",))
    label = label or only_column(rows, "label", usual=LABELS)
    for option, column in (("image", image), ("label", label)):
        if column.split(".")[0] not in rows.features:
            raise ValueError(f"data.{option} ({column!r}) is no column; there are {', '.join(rows.features)}")
    return image, label


def without_decoding(rows: datasets.IterableDataset, image: str, label: str) -> datasets.IterableDataset:
    """The two columns alone, images as the bytes that they are stored in."""
    kept = rows.cast_column(image, datasets.Image(decode=False))
    return kept.select_columns([image, label.split(".")[0]])


def class_names(rows: datasets.IterableDataset, label: str, labels: Sequence[Any]) -> tuple[str, ...]:
    """The classes that the table declares, else those of ``labels``, the labels of the evaluation splits."""
    return class_names_of(field(rows.features, label), labels, label)


def field(row: Any, name: str) -> Any:
    """The value under a name, or under a dotted name within it."""
    for part in name.split("."):
        try:
            row = row[part]
        except (KeyError, TypeError) as error:
            raise ValueError(f"data.label ({name!r}) is not in each row: {part!r} is missing") from error
    return row


def _place(source: str) -> str:
    shelf = os.environ.get("PATCHMERGER_DATA")
    if source and Path(source).expanduser().is_dir():
        return str(Path(source).expanduser())
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"data.source ({source!r}) cannot be streamed: give a folder of .tar (WebDataset) or parquet files, or "
            '"owner/name" of a dataset on the Hugging Face Hub'
        )
    if shelf and (on_shelf := Path(shelf).expanduser() / source.split("/")[1]).is_dir():
        return str(on_shelf)
    return source


def _with_features(rows: datasets.IterableDataset) -> datasets.IterableDataset:
    """With the columns known; some kinds of files tell them only in their first rows."""
    return rows if rows.features is not None else rows._resolve_features()


def _count(builder: Any) -> int | None:
    """Training images, by what the dataset says of itself or by its parquet files."""
    splits = builder.info.splits or {}
    if "train" in splits and splits["train"].num_examples:
        return int(splits["train"].num_examples)
    files = [str(path) for path in (builder.config.data_files or {}).get("train", [])]
    if files and all(path.endswith(".parquet") and Path(path).is_file() for path in files):
        return sum(int(pyarrow.parquet.read_metadata(path).num_rows) for path in files)
    return None
