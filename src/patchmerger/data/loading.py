"""From what a user says about the data to the images of a run."""

from __future__ import annotations

from patchmerger.data.images import load_sets
from patchmerger.data.settings import DataSettings
from patchmerger.data.sources import open_source
from patchmerger.data.splits import ImageDataset, ImageSplits, split_images, warn_of
from patchmerger.data.streaming import stream_images


def load_images(data: DataSettings, *, seed: int, may_stream: bool = False, labels_needed: bool = True) -> ImageSplits:
    """Reads a dataset and makes the training, validation and test sets of one seed.

    Args:
        data: Which images.
        seed: What is held out depends on it.
        may_stream: Whether the training set may be one that is read in order only (an ``ImageStream``).
        labels_needed: Whether images without labels are refused.

    Raises:
        ValueError: If the source, its contents or their number are not usable; the message names what is wrong.
        FileNotFoundError: If the files of the source are not there.
    """
    if data.streaming and may_stream:
        return stream_images(data)
    return split_images(read_images(data, labels_needed=labels_needed), seed=seed)


def read_images(data: DataSettings, *, labels_needed: bool = True) -> ImageDataset:
    """Reads, checks and, if small, decodes a dataset: the slow part, which several seeds can share.

    Args:
        data: Which images.
        labels_needed: Whether images without labels are refused.

    Raises:
        ValueError: If the source or its contents are not usable; the message names what is wrong.
        FileNotFoundError: If the files of the source are not there.
    """
    if data.streaming:
        raise ValueError("streaming (true) is for one training, patchmerger fit: nothing else reads images in order")
    source = open_source(data)
    if labels_needed and not source.class_names:
        said = "".join(f"; {remark}" for remark in source.remarks)
        raise ValueError(f"{data.source} holds images without labels: sort them into one folder a class{said}")
    sets, skipped, losses = load_sets(source.splits, data)
    remarks = (*source.remarks, *losses)
    warn_of(data.source, remarks)
    return ImageDataset(data.source, sets, source.class_names, data.validation, skipped, remarks)
