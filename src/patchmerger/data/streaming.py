"""The images of a run whose training split is streamed: what is read in order, and what is held for evaluation."""

from __future__ import annotations

from typing import Any

from patchmerger.data.folders import SPLIT_NAMES
from patchmerger.data.loading import EncodedSet, load_sets
from patchmerger.data.settings import DataSettings
from patchmerger.data.splits import ImageSplits
from patchmerger.data.streams import (
    Held,
    ImageStream,
    class_names,
    field,
    find_columns,
    open_streams,
    without_decoding,
)
from patchmerger.data.tables import picture_in, targets_of


def stream_images(settings: DataSettings) -> ImageSplits:
    """Opens a stream of training images; reads the validation and test splits, encoded, into memory.

    The test split is the one of that name, or else the validation split; nothing is held out of a stream. Classes are
    those that the table declares, else those found in the evaluation splits.

    Args:
        settings: Which images.

    Raises:
        ValueError: There is no training split or none to evaluate on, columns cannot be told, or the number of
            training images is neither known nor given.
        FileNotFoundError: There is nothing to stream.
    """
    streams, known = open_streams(settings.source, settings.subset)
    named = {SPLIT_NAMES[name.lower()]: rows for name, rows in streams.items() if name.lower() in SPLIT_NAMES}
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
    names = class_names(train, label, [value for _, labels in held.values() for value in labels])
    feature = field(train.features, label)
    encoded = {
        name: EncodedSet(Held(pictures, name), targets_of(labels, names, name, feature))
        for name, (pictures, labels) in held.items()
    }
    sets, bad = load_sets(encoded, memory_limit=settings.memory_gib * 2**30, bad_files=settings.bad_files)
    test = sets["test"] if "test" in sets else sets["validation"]
    validation = sets.get("validation") if "test" in sets else None
    stream = ImageStream(
        without_decoding(train, image, label),
        image=image,
        label=label,
        class_names=names,
        samples=samples,
        buffer=settings.shuffle_buffer,
        skip_bad=settings.bad_files == "skip",
    )
    files = stream.shards(1)
    counts = [f"{samples:,} training images an epoch, streamed from {files} file{'s' if files > 1 else ''}"]
    counts += [] if validation is None else [f"{len(validation):,} validation images"]
    which = "test images" if "test" in sets else "test images (the validation split)"
    return ImageSplits(
        train=stream,
        validation=validation,
        test=test,
        class_names=names,
        multi_label=test.targets.is_floating_point(),
        skipped=tuple(str(file) for file in bad),
        description=f"{settings.source}: {', '.join(counts)}, {len(test):,} {which} of {len(names)} classes",
    )
