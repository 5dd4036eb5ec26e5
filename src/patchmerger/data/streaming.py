"""Training images that are read in order and never held: WebDataset shards, parquet files, streamed Hub datasets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from patchmerger.data.decoding import Encoded, EncodedSet, Picture
from patchmerger.data.folders import local_folder
from patchmerger.data.images import ImageSet, load_sets
from patchmerger.data.labels import Classes
from patchmerger.data.settings import DataSettings
from patchmerger.data.splits import SPLIT_NAMES, ImageDataset, ImageSplits, make_splits, warn_of
from patchmerger.data.tables import check_parquet, class_label, only_column, picture_in

_HASHED = 32
Row = tuple[Picture, Any]
"""An encoded image and its label or labels."""


@dataclass(eq=False)
class ImageStream(ImageSet):
    """A training set that can only be read in order; asked for an image by its number, it refuses.

    Attributes:
        table: The training split.
        image: The column of the images.
        label: The column of the labels; a dotted name reaches into one that holds several values.
        classes: Of the labels.
        samples: Images in an epoch.
        data: Of it the buffer from which images are drawn, their largest size and what becomes of bad ones.
    """

    table: datasets.IterableDataset
    image: str
    label: str
    classes: Classes
    samples: int
    data: DataSettings
    random_access = False

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Tensor:
        raise TypeError("streamed images are read in order only: this needs data.streaming false")

    def __getattr__(self, name: str) -> Any:
        if name in ("targets", "rows", "images"):
            raise TypeError(f"streamed images have no {name} to look up: this needs data.streaming false")
        raise AttributeError(name)

    @property
    def sample_hash(self) -> str:
        """A hash of the first images, as they are stored."""
        digest = hashlib.sha256()
        for row in self.table.take(_HASHED):
            picture = picture_in(row[self.image])
            digest.update(picture if isinstance(picture, bytes) else str(picture).encode())
        return digest.hexdigest()

    def shards(self, world_size: int) -> int:
        """Files that each of ``world_size`` processes reads; all of them where they cannot be shared out evenly."""
        count = int(self.table.num_shards)
        return count if count % world_size else count // world_size

    def read(self, seed: int, *, rank: int, world_size: int) -> Iterator[Row]:
        """The share of one process, once: files in an order of ``seed``, images drawn from a buffer.

        In a worker of a DataLoader, the worker's share of it. All shares together hold every image once.
        """
        shuffled = self.table.shuffle(seed=seed, buffer_size=self.data.shuffle_buffer)
        for row in split_dataset_by_node(shuffled, rank=rank, world_size=world_size):
            yield picture_in(row[self.image]), field(row, self.label)

    def targets_of(self, labels: Sequence[Any]) -> Tensor:
        """Class numbers, int64 (n,), or float32 zeros and ones (n, C) with several labels an image."""
        return self.classes.targets(labels, "train")


def stream_images(settings: DataSettings) -> ImageSplits:
    """Opens a stream of training images; reads the validation and test splits, encoded, into memory.

    The test split is the one of that name, or else the validation split; nothing is held out of a stream. Classes are
    those that the table declares, else those found in the evaluation splits.

    Raises:
        ValueError: There is no training split or none to evaluate on, columns cannot be told, or the number of
            training images is neither known nor given.
    """
    streams, known = open_streams(settings.source, settings.subset)
    named = {SPLIT_NAMES[name.lower()]: rows for name, rows in streams.items() if name.lower() in SPLIT_NAMES}
    unread = [name for name in streams if name.lower() not in SPLIT_NAMES]
    if len(named) + len(unread) < len(streams):
        raise ValueError(f"data.source ({settings.source}) has splits of one meaning: {', '.join(streams)}")
    if "train" not in named or len(named) < 2:
        raise ValueError(
            f"data.source ({settings.source}) has the splits {', '.join(streams)}: a stream needs train, and "
            "validation or test, for nothing is held out of a stream"
        )
    samples = settings.samples if settings.samples is not None else known
    if samples is None:
        raise ValueError(
            f"data.samples ({settings.samples}) must be the number of training images in an epoch, which "
            f"{settings.source} does not say"
        )
    train = named.pop("train")
    image, label = find_columns(train, settings.image, settings.label)
    held: dict[str, tuple[list[Any], list[Any]]] = {}
    for name, rows in named.items():
        read = [(picture_in(row[image]), field(row, label)) for row in without_decoding(rows, image, label)]
        held[name] = ([picture for picture, _ in read], [value for _, value in read])
    declared = class_label(field(train.features, label))
    classes = Classes.of(declared, [value for _, labels in held.values() for value in labels], label)
    encoded = {
        name: EncodedSet(Encoded(pictures, name), classes.targets(labels, name))
        for name, (pictures, labels) in held.items()
    }
    sets, bad, losses = load_sets(encoded, settings)
    test = sets["test"] if "test" in sets else sets["validation"]
    validation = sets.get("validation") if "test" in sets else None
    stream = ImageStream(without_decoding(train, image, label), image, label, classes, samples, settings)
    files = stream.shards(1)
    how = f"training images streamed from {files} file{'s' if files > 1 else ''}"
    how += "" if "test" in sets else ", the validation split is the test set"
    notes = (*([f"splits not read: {', '.join(unread)}"] if unread else []), *losses)
    warn_of(settings.source, notes, classes.names)
    images = ImageDataset(settings.source, sets, classes.names, skipped=bad, remarks=notes)
    return make_splits(images, (stream, validation, test), how)


def open_streams(source: str, subset: str | None) -> tuple[dict[str, datasets.IterableDataset], int | None]:
    """The splits of a source by name, as ``datasets.load_dataset`` finds them, and how many training images there are.

    Nothing is read, so that the number may be unknown. The source is a folder of tar or parquet files, or
    ``"owner/name"`` of a dataset of the Hub (first looked for as the folder ``$PATCHMERGER_DATA/name``).
    """
    place = _place(source)
    try:
        builder = datasets.load_dataset_builder(place, subset)
        streams = dict(builder.as_streaming_dataset())
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(f"data.source ({source}) cannot be streamed: {error}") from error
    # Some kinds of files tell their columns only in their first rows.
    known = {name: rows if rows.features is not None else rows._resolve_features() for name, rows in streams.items()}
    return known, _count(builder)


def find_columns(rows: datasets.IterableDataset, image: str | None, label: str | None) -> tuple[str, str]:
    """The columns of images and labels, as named or as they can be told."""
    image = image or only_column(rows, "image")
    label = label or only_column(rows, "label")
    for option, column in (("image", image), ("label", label)):
        if column.split(".")[0] not in rows.features:
            raise ValueError(f"data.{option} ({column!r}) is no column; there are {', '.join(rows.features)}")
    return image, label


def without_decoding(rows: datasets.IterableDataset, image: str, label: str) -> datasets.IterableDataset:
    """The two columns alone, images as the bytes that they are stored in."""
    kept = rows.cast_column(image, datasets.Image(decode=False))
    return kept.select_columns([image, label.split(".")[0]])


def field(row: Any, name: str) -> Any:
    """The value under a name, or under a dotted name within it."""
    for part in name.split("."):
        try:
            row = row[part]
        except (KeyError, TypeError) as error:
            raise ValueError(f"data.label ({name!r}) is not in each row: {part!r} is missing") from error
    return row


def _place(source: str) -> str:
    if folder := local_folder(source):
        check_parquet(folder)
        return str(folder)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"data.source ({source!r}) cannot be streamed: give a folder of .tar (WebDataset) or parquet files, or "
            '"owner/name" of a dataset on the Hugging Face Hub'
        )
    return source


def _count(builder: Any) -> int | None:
    """Training images, by what the dataset says of itself or by its parquet files."""
    splits = builder.info.splits or {}
    if "train" in splits and splits["train"].num_examples:
        return int(splits["train"].num_examples)
    files = [str(path) for path in (builder.config.data_files or {}).get("train", [])]
    if files and all(path.endswith(".parquet") and Path(path).is_file() for path in files):
        return sum(int(pyarrow.parquet.read_metadata(path).num_rows) for path in files)
    return None
