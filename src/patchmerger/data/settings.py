"""What a user says about the data, and what becomes of it: a whole dataset, the images of one run."""

from dataclasses import dataclass, field

from patchmerger.data.images import ImageSet
from patchmerger.data.loading import BadFiles
from patchmerger.data.streams import ImageStream
from patchmerger.runs.run_folder import LATER


@dataclass(frozen=True)
class DataSettings:
    """Which images to use.

    Attributes:
        source: "digits" (built in), a folder (of class folders, of parquet files, or saved by the Hugging Face
            datasets library), "torchvision:CIFAR10" and the like, or "owner/name" of a dataset on the Hub, which is
            first looked for in the folder $PATCHMERGER_DATA/name.
        root: For torchvision, the folder that holds its files; $PATCHMERGER_DATA by default.
        subset: For a dataset of the Hub that has several configurations, which one.
        image: For tables, the column of the images, if there are several.
        label: For tables, the column of the labels, if there are several.
        validation: The share of the training images that is held out where there is no validation split; 0 for none.
        crop_pct: In evaluation, the share of the resized image that is kept, in the middle; by default that of the
            pretrained weights, and 1 without them.
        bad_files: What to do with a file that is not an image: "error" stops and names it, "skip" leaves it out and
            lists it.
        memory_gib: Keep the decoded images in memory if they take no more than this many GiB.
        workers: Processes that load images on each device; chosen by the number of cores by default.
        streaming: Read training images in order, from WebDataset shards (.tar), parquet files or the Hub, without
            holding or indexing them: for sets that do not fit a disk.
        samples: With streaming, the training images in an epoch, where the source does not say how many there are.
        shuffle_buffer: With streaming, the images among which the next one is drawn; each process that reads holds
            so many, encoded.
    """

    source: str = "digits"
    root: str | None = None
    subset: str | None = None
    image: str | None = None
    label: str | None = None
    validation: float = 0.1
    crop_pct: float | None = None
    bad_files: BadFiles = "error"
    memory_gib: float = 2.0
    workers: int | None = None
    streaming: bool = field(default=False, metadata=LATER)
    samples: int | None = field(default=None, metadata=LATER)
    shuffle_buffer: int = field(default=1000, metadata=LATER)


@dataclass(frozen=True)
class Images:
    """A whole dataset, read and checked, not yet divided for a seed.

    Attributes:
        sets: Images by ``"train"`` and, where there are such splits, ``"validation"`` and ``"test"``.
        class_names: The name of each class number.
        skipped: The files that were left out, with the reason.
        settings: What it was read with.
        remarks: What a user should know, such as a folder that was not read.
    """

    sets: dict[str, ImageSet]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]
    settings: DataSettings
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class ImageSplits:
    """The images of one run.

    Attributes:
        train: To learn from.
        validation: To watch and choose by, or None.
        test: For the final number, to be looked at once.
        class_names: The name of each class number.
        multi_label: Whether an image may have several labels (targets are zeros and ones then).
        skipped: The files that were left out, with the reason.
        description: In words: source, numbers of images and classes, where each set comes from.
    """

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet
    class_names: tuple[str, ...]
    multi_label: bool
    skipped: tuple[str, ...]
    description: str

    @property
    def to_look_at(self) -> ImageSet:
        """A set that some images may be taken from: validation, or else train, or test where train is streamed."""
        if self.validation is not None:
            return self.validation
        return self.test if isinstance(self.train, ImageStream) else self.train
