"""Images without labels: a folder of image files, or any source whose labels are not wanted."""

from pathlib import Path

import torch

from patchmerger.data.folders import Files
from patchmerger.data.images import ImageSet
from patchmerger.data.loading import EncodedSet, load_sets
from patchmerger.data.settings import DataSettings
from patchmerger.data.splits import ImageSplits

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def is_unlabelled(source: str) -> bool:
    """Whether a source is a folder of image files that lie in no class folders."""
    path = Path(source).expanduser()
    return bool(source) and path.is_dir() and bool(_files(path))


def load_unlabelled(settings: DataSettings, *, seed: int) -> ImageSplits:
    """Reads the image files in a folder, and holds a tenth out for validation and another one for testing.

    Args:
        settings: Which images: ``source`` is the folder; ``validation`` the share that is held out for each of both.
        seed: What is held out depends on it.

    Returns:
        The images. Their targets are all 0 and mean nothing.

    Raises:
        ValueError: There are fewer than 10 images, or files that are no images.
    """
    encoded = EncodedSet(Files(_files(Path(settings.source).expanduser())), torch.empty(0))
    count = len(encoded.images)
    if count < 10:
        raise ValueError(f"{settings.source} has {count} images: 10 at least, to learn from and to hold out")
    encoded = EncodedSet(encoded.images, torch.zeros(count, dtype=torch.long))
    loaded, bad = load_sets({"train": encoded}, memory_limit=settings.memory_gib * 2**30, bad_files=settings.bad_files)
    images = loaded["train"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    held = max(1, round((settings.validation or 0.1) * len(images)))
    parts: list[ImageSet] = [
        images.subset(sorted(part)) for part in (order[2 * held :], order[:held], order[held : 2 * held])
    ]
    train, validation, test = parts
    return ImageSplits(
        train=train,
        validation=validation if settings.validation else None,
        test=test,
        class_names=(),
        multi_label=False,
        skipped=tuple(str(file) for file in bad),
        description=f"{settings.source}: {len(train):,} training, {len(validation):,} validation, {len(test):,} test "
        f"images without labels, held out at random (seed {seed})",
    )


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _ENDINGS)
