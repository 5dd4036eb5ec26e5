"""From what a user says about the data to the images of a run."""

from patchmerger.data.loading import load_sets
from patchmerger.data.settings import DataSettings
from patchmerger.data.sources import read_source
from patchmerger.data.splits import Images, ImageSplits, divide
from patchmerger.data.streaming import stream_images


def read_images(settings: DataSettings) -> Images:
    """Reads, checks and, if small, decodes a dataset: the slow part, which several seeds can share.

    Args:
        settings: Which images.

    Raises:
        ValueError: If the source or its contents are not usable; the message names what is wrong.
        FileNotFoundError: If the files of the source are not there.
    """
    if settings.streaming:
        raise ValueError("data.streaming is for one training, patchmerger fit: nothing else reads images in order only")
    source = read_source(
        settings.source,
        root=settings.root,
        subset=settings.subset,
        image=settings.image,
        label=settings.label,
    )
    sets, bad = load_sets(source.splits, memory_limit=settings.memory_gib * 2**30, bad_files=settings.bad_files)
    return Images(sets, source.class_names, tuple(str(file) for file in bad), settings, source.remarks)


def split_images(images: Images, *, seed: int) -> ImageSplits:
    """Divides a dataset into the training, validation and test sets of one seed: see ``divide``.

    Args:
        images: From ``read_images``.
        seed: What is held out depends on it.

    Raises:
        ValueError: If there are too few classes, or too few images to hold some out.
    """
    sets = divide(images.sets, images.class_names, validation=images.settings.validation, seed=seed)
    counts = [f"{len(sets.train):,} training", f"{len(sets.test):,} test"]
    if sets.validation is not None:
        counts.insert(1, f"{len(sets.validation):,} validation")
    notes = [sets.how, *images.remarks]
    if images.skipped:
        notes.append(f"{len(images.skipped)} bad files left out")
    return ImageSplits(
        train=sets.train,
        validation=sets.validation,
        test=sets.test,
        class_names=images.class_names,
        multi_label=sets.train.targets.is_floating_point(),
        skipped=images.skipped,
        description=f"{images.settings.source}: {', '.join(counts)} images of {len(images.class_names)} classes; "
        + "; ".join(notes),
    )


def load_images(settings: DataSettings, *, seed: int, may_stream: bool = False) -> ImageSplits:
    """Reads a dataset and divides it into training, validation and test sets.

    Args:
        settings: Which images.
        seed: What is held out depends on it.
        may_stream: Whether the training set may be one that is read in order only (an ``ImageStream``).

    Raises:
        ValueError: If the source, its contents or their number are not usable; the message names what is wrong.
        FileNotFoundError: If the files of the source are not there.
    """
    if settings.streaming and may_stream:
        return stream_images(settings)
    return split_images(read_images(settings), seed=seed)
