"""From what a user says about the data to the images of a run."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import TypeAlias

from patchmerger.data.folders import is_unlabelled
from patchmerger.data.images import load_sets
from patchmerger.data.own_datasets import OwnDataset, identify_own, open_own, read_own
from patchmerger.data.settings import DataSettings, OwnData, as_data_settings
from patchmerger.data.sources import open_source
from patchmerger.data.splits import ImageDataset, ImageSplits, split_images, warn_of
from patchmerger.data.streaming import stream_images

_TENTH = 0.1

DataLike: TypeAlias = str | os.PathLike[str] | DataSettings | ImageDataset | ImageSplits | OwnDataset
"""What images are given as: a source, ``DataSettings``, images that are read, or a dataset of one's own."""


def load_images(
    data: DataLike,
    *,
    seed: int,
    may_stream: bool = False,
    labels_needed: bool = True,
    validation: float | None = None,
) -> ImageSplits:
    """Reads a dataset and makes the training, validation and test sets of one seed.

    Args:
        data: Which images: a source such as "digits" or a folder, ``DataSettings``, a map-style ``Dataset`` of torch
            with (image, label) or dicts, a ``Dataset`` or ``DatasetDict`` of the Hugging Face library, a ``DataLoader``
            (of which the dataset is taken), a dict of datasets by train, validation and test, or ``ImageSplits``,
            which are returned. Images may be pictures of PIL, uint8 (3, H, W), or floats (3, S, S), which are passed
            on as they are: not varied, resized or normalised.
        seed: What is held out depends on it.
        may_stream: Whether the training set may be one that is read in order only (an ``ImageStream``).
        labels_needed: Whether images without labels are refused.
        validation: Of a dataset of one's own, the share of the training images that is held out where it has no
            validation split; a tenth if not given. ``DataSettings`` and an ``ImageDataset`` have their own.

    Raises:
        TypeError: If ``data`` is something else; the message says what would do.
        ValueError: If the source, its contents or their number are not usable; the message names what is wrong.
        FileNotFoundError: If the files of the source are not there.
    """
    if isinstance(data, ImageSplits):
        if labels_needed and not data.class_names:
            raise ValueError("data (ImageSplits) holds images without labels, which are needed here")
        return data
    if may_stream and isinstance(data, DataSettings) and data.streaming:
        return stream_images(data)
    return split_images(read_images(data, labels_needed=labels_needed, validation=validation), seed=seed)


def read_images(data: DataLike, *, labels_needed: bool = True, validation: float | None = None) -> ImageDataset:
    """Reads, checks and, if small, decodes a dataset: the slow part, which several seeds can share.

    Arguments and errors are as for :func:`load_images`.
    """
    if isinstance(data, ImageSplits):
        raise TypeError("data (ImageSplits) holds the images of one seed: give what they were read from")
    if isinstance(data, OwnData):
        raise TypeError(
            f"data ({data.source}) was a dataset of one's own, which settings only name: give the dataset itself where "
            "there is such an argument, else images that can be read again (a folder, parquet files)"
        )
    if not isinstance(data, str | os.PathLike | DataSettings):
        images = (
            data
            if isinstance(data, ImageDataset)
            else read_own(data, validation=_TENTH if validation is None else validation)
        )
        if labels_needed and not images.class_names:
            raise ValueError(f"data ({images.name}) holds images without labels: give pairs of (image, label)")
        return images
    settings = as_data_settings(data)
    if settings.streaming:
        raise ValueError("streaming (true) is for one training, patchmerger fit: nothing else reads images in order")
    source = open_source(settings)
    if labels_needed and not source.class_names:
        said = "".join(f"; {remark}" for remark in source.remarks)
        raise ValueError(f"{settings.source} holds images without labels: sort them into one folder a class{said}")
    sets, skipped, losses = load_sets(source.splits, settings)
    remarks = (*source.remarks, *losses)
    warn_of(settings.source, remarks, source.class_names)
    return ImageDataset(settings.source, sets, source.class_names, settings.validation, skipped, remarks)


def identify_data(data: DataLike) -> DataSettings | OwnData:
    """What the settings of a run record of its data: ``DataSettings``, or of a dataset of one's own a hash."""
    if isinstance(data, str | os.PathLike | DataSettings):
        return as_data_settings(data)
    if isinstance(data, ImageSplits):
        sets = {"train": data.train, "validation": data.validation, "test": data.test}
        return identify_own({split: images for split, images in sets.items() if images is not None})
    if isinstance(data, ImageDataset):
        return replace(identify_own(data.sets), validation=data.validation)
    return identify_own(data)


def settings_of(data: DataLike) -> DataSettings:
    """The settings of images, for those that are not read by settings the default ones."""
    return as_data_settings(data) if isinstance(data, str | os.PathLike | DataSettings) else DataSettings()


def name_of(data: DataLike) -> str:
    """What messages call images."""
    if isinstance(data, ImageDataset):
        return data.name
    if isinstance(data, DataSettings):
        return data.source
    return str(data) if isinstance(data, str | os.PathLike) else type(data).__name__


def recorded_data(data: DataLike | None, settings: DataSettings | OwnData) -> DataSettings | OwnData:
    """What settings record where images are given beside them.

    A source stands in place of theirs, and all else that they say is done. For a dataset of one's own ``workers``,
    ``crop_pct`` and ``validation`` are looked at, for images that are read already the first two.

    Raises:
        ValueError: The settings say something else of images that nothing would look at.
    """
    if data is None:
        return settings
    if isinstance(data, str | os.PathLike) and isinstance(settings, DataSettings):
        return replace(settings, source=as_data_settings(data).source)
    known = identify_data(data)
    if isinstance(known, DataSettings):
        return known
    read_already = isinstance(data, ImageDataset | ImageSplits)
    looked_at = ("source", "workers", "crop_pct", *(() if read_already else ("validation",)))
    for field in fields(DataSettings) if isinstance(settings, DataSettings) else ():
        value = getattr(settings, field.name)
        if field.name not in looked_at and value != field.default:
            raise ValueError(
                f"data.{field.name} ({value!r}) is for images that are read from a source, and would be ignored for "
                f"what is given in Python ({name_of(data)}): leave it out, or make the dataset so"
            )
    share = known.validation if read_already else settings.validation
    return replace(known, workers=settings.workers, crop_pct=settings.crop_pct, validation=share)


def to_read(data: DataLike | None, recorded: DataSettings | OwnData) -> DataLike:
    """The images that ``recorded_data`` made a record of: where that is settings, they say all of them."""
    return recorded if data is None or isinstance(recorded, DataSettings) else data


def has_labels(data: DataLike) -> bool:
    """Whether images have labels, without reading them all; see :func:`load_images`."""
    if isinstance(data, ImageSplits | ImageDataset):
        return bool(data.class_names)
    if isinstance(data, str | os.PathLike | DataSettings):
        return not is_unlabelled(as_data_settings(data))
    return open_own(data)["train"].item(0)[1] is not None
