"""A folder of class folders, with or without split folders around them."""

from pathlib import Path

import torch

from patchmerger.data.images import EncodedDataset, EncodedSet

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""The names that splits go by, and what they are called here."""

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
_LITTER = {"thumbs.db", "desktop.ini"}


class ImageFiles:
    """Image files.

    Args:
        paths: One path an image.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """The bytes of file ``index``."""
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        """The path of file ``index``."""
        return str(self.paths[index])


def read_folder(path: Path) -> EncodedDataset:
    """Reads ``path/dog/1.jpg`` or ``path/train/dog/1.jpg``; a class folder may have folders within.

    Every file counts as an image, whatever its name, except hidden files and what file managers leave behind.

    Args:
        path: The folder.

    Returns:
        The dataset, not decoded, with its classes in alphabetical order; without labels where images lie in no folder.

    Raises:
        ValueError: If there are no class folders, a class folder is empty, the classes of two splits differ
            or two folders hold the same split.
    """
    if is_unlabelled(str(path)):
        files = _images_in(path)
        return EncodedDataset({"train": EncodedSet(ImageFiles(files), torch.zeros(len(files), dtype=torch.long))}, ())
    split_folders = [folder for folder in _folders(path) if folder.name.lower() in SPLIT_NAMES and _folders(folder)]
    if not split_folders:
        return _read_splits({"train": path}, [])
    by_split: dict[str, Path] = {}
    for folder in split_folders:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in by_split:
            raise ValueError(f"{by_split[split]} and {folder} both hold the {split} split: take one away")
        by_split[split] = folder
    left_out = [folder.name for folder in _folders(path) if folder not in split_folders]
    remarks = [f"not read, for want of class folders: {', '.join(left_out)}"] if left_out else []
    return _read_splits(by_split, remarks)


def _read_splits(folders: dict[str, Path], remarks: list[str]) -> EncodedDataset:
    classes = {split: [folder.name for folder in _folders(path)] for split, path in folders.items()}
    first = next(iter(folders))
    for split, names in classes.items():
        if not names:
            raise ValueError(f"{folders[split]} has no class folders: images belong into one folder a class")
        if different := sorted(set(names) ^ set(classes[first])):
            raise ValueError(
                f"the classes of {folders[first]} and {folders[split]} differ: "
                f"{', '.join(different[:10])} in only one of them"
            )
    splits = {split: _read_split(path) for split, path in folders.items()}
    return EncodedDataset(splits, tuple(classes[first]), tuple(remarks))


def _read_split(path: Path) -> EncodedSet:
    paths: list[Path] = []
    targets: list[int] = []
    for number, folder in enumerate(_folders(path)):
        files = sorted(
            file
            for file in folder.rglob("*")
            if file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)
            and file.name.lower() not in _LITTER
        )
        if not files:
            raise ValueError(f"the class folder {folder} is empty: fill it or take it away")
        paths += files
        targets += [number] * len(files)
    return EncodedSet(ImageFiles(paths), torch.tensor(targets))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def is_unlabelled(source: str) -> bool:
    """Whether a source is a folder of image files that lie in no class folders."""
    path = Path(source).expanduser()
    return bool(source) and path.is_dir() and not _folders(path) and bool(_images_in(path))


def _images_in(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in _ENDINGS)
