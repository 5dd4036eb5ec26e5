"""A folder of images: which folders in it are splits, which are classes, and what else must be said of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from patchmerger.data.decoding import Encoded, EncodedDataset, EncodedSet
from patchmerger.data.labels import alike_names
from patchmerger.data.settings import DataSettings, Layout
from patchmerger.data.splits import SPLIT_NAMES
from patchmerger.data.tables import METADATA, read_metadata, says_labels
from patchmerger.runs.text import some_of

_IMAGES = "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm pnm avif heic heif jp2 jxl tga"
IMAGES = frozenset(f".{ending}" for ending in _IMAGES.split())
"""Endings of image files."""

_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
_ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z", ".h5", ".hdf5", ".npy", ".npz", ".mdb", ".tfrecord"}
_CONTAINERS = {"images", "image", "imgs", "img", "jpegimages", "pictures", "data", "dataset"}
_ANNOTATIONS = {"labels", "label", "annotations", "annotation", "annots", "masks", "mask", "bboxes", "metadata"}
_LABEL_ENDINGS = {".csv", ".tsv", ".json", ".jsonl", ".xml", ".parquet", ".mat", ".xlsx", ".npy", ".npz"}
_LABEL_WORDS = re.compile(r"label|annot|target|class|ground.?truth", re.IGNORECASE)


def is_unlabelled(data: DataSettings) -> bool:
    """Whether the source is a folder of image files that lie in no class folders, with no labels beside them."""
    path = local_folder(data.source)
    if path is None or _folders(path) or not _images_in(path):
        return False
    table = _metadata_of(path)
    return table is None or not says_labels(table, data.label)


def local_folder(source: str) -> Path | None:
    """The folder that a source names: its path, or a folder of ``$PATCHMERGER_DATA`` by its name or "owner/name"."""
    if not source:
        return None
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    data_root = os.environ.get("PATCHMERGER_DATA")
    if data_root and re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", source):
        stored = Path(data_root).expanduser() / source.rsplit("/", 1)[-1]
        return stored if stored.is_dir() else None
    return None


def read_folder(path: Path, data: DataSettings) -> EncodedDataset:
    """Reads ``path/dog/1.jpg`` or ``path/train/dog/1.jpg``; a class folder may have folders within.

    Every file counts as an image, whatever its name, except hidden files and what file managers leave behind. Links
    are followed. Where a ``metadata.csv``, ``.jsonl`` or ``.parquet`` lies beside the images and says their labels,
    these are taken; images that lie in no folder have none. Classes are in alphabetical order.

    Raises:
        ValueError: Folders that may be classes or splits, an empty class folder, classes that differ between splits,
            two folders for the same split, no images at all.
    """
    remarks: list[str] = []
    if dataset := _read_tables({"train": path}, data, remarks):
        return dataset
    splits = _find_splits(path, data.layout, remarks)
    for folder in {path, *splits.values()}:
        _check_links(folder)
    if splits != {"train": path} and (dataset := _read_tables(splits, data, remarks)):
        return dataset
    if splits == {"train": path} and not _folders(path):
        return _without_labels(path, remarks)
    classes = {split: _class_folders(folder, data) for split, folder in splits.items()}
    first = next(iter(splits))
    for split, folders in classes.items():
        if different := sorted({f.name for f in folders} ^ {f.name for f in classes[first]}):
            alike = alike_names(different)
            raise ValueError(
                f"the classes of {splits[first]} and {splits[split]} differ: "
                f"{', '.join(different[:10])} in only one of them" + (f"; {alike}" if alike else "")
            )
    for folder in {path, *splits.values()}:
        if unread := _label_files(folder):
            remarks.append(f"not read, for the classes are the folders: {', '.join(file.name for file in unread[:5])}")
        if loose := _images_in(folder):
            remarks.append(_loose(loose, folder, data))
        if packed := [file.name for file in _plain_files(folder) if file.suffix.lower() in _ARCHIVES]:
            remarks.append(f"not read: {', '.join(packed[:5])} in {folder.name}: unpack what belongs to the images")
    names = tuple(folder.name for folder in classes[first])
    return EncodedDataset({split: _read_split(folders) for split, folders in classes.items()}, names, tuple(remarks))


def _read_tables(splits: dict[str, Path], data: DataSettings, remarks: list[str]) -> EncodedDataset | None:
    """The images with the labels that tables beside them say, where there are such; what is not read is a remark."""
    tables = {split: found for split, folder in splits.items() if (found := _metadata_of(folder))}
    if not tables:
        return None
    some = next(iter(tables.values()))
    if len(tables) < len(splits):
        without = next(folder for split, folder in splits.items() if split not in tables)
        raise ValueError(f"{some} lies beside images, but there is no such file in {without}: add or remove it")
    images = {split: list(images_below(folder)) for split, folder in splits.items()}
    dataset = read_metadata(tables, images, data)
    if dataset is None:
        remarks.append(f"{some} is not read: it has no column label, and data.label names none")
        return None
    if list(splits) == list(dataset.splits) == ["train"] and _folders(splits["train"]):
        remarks.append(f"labels are those of {some.name}, not the folders")
    return replace(dataset, remarks=(*remarks, *dataset.remarks))


def _find_splits(path: Path, layout: Layout, remarks: list[str]) -> dict[str, Path]:
    """The folder of each split, or ``path`` as the training split; what is left out is a remark."""
    folders = _folders(path)
    if layout == "classes":
        return {"train": path}
    inner = [f for f in folders if f.name.lower() in SPLIT_NAMES and (_folders(f) or _metadata_of(f))]
    if not inner:
        suggested = {folder.name: split for folder in folders if (split := _suggested_split(folder.name))}
        if layout == "splits":
            raise ValueError(
                f'layout ("splits"): {path} has no folders train, validation or test with class folders in them; it '
                f"has {', '.join(folder.name for folder in folders) or 'no folders'}"
            )
        if len(set(suggested.values())) > 1 or (suggested and len(suggested) == len(folders)):
            raise ValueError(
                f"{path} has the folders {', '.join(suggested)}: they may be splits or classes. For splits call them "
                "train, validation and test, with a folder a class (or metadata.csv with file_name and label) in each; "
                'for classes set layout to "classes"'
            )
        return {"train": path}
    by_split: dict[str, Path] = {}
    for folder in inner:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in by_split:
            raise ValueError(f"{by_split[split]} and {folder} both hold the {split} split: take one away")
        by_split[split] = folder
    others = [folder for folder in folders if folder not in inner]
    strangers = [f for f in others if f.name.lower() not in SPLIT_NAMES and any(images_below(f))]
    if strangers and layout == "auto":
        raise ValueError(
            f"{path} has the splits {', '.join(f.name for f in inner)} beside {', '.join(f.name for f in strangers)}, "
            'which hold images too: are all of them classes? Then set layout to "classes"; to read the splits alone, '
            'move the others away or set layout to "splits"'
        )
    if others:
        remarks.append(f"not read, for want of class folders: {', '.join(folder.name for folder in others)}")
    return by_split


def _class_folders(path: Path, data: DataSettings) -> list[Path]:
    """The class folders of a split, refused where they may be something else."""
    folders = _folders(path)
    if not folders:
        raise ValueError(f"{path} has no class folders: images belong into one folder a class{_instead(path)}")
    if data.layout == "classes":
        return folders
    inside = {folder: {inner.name for inner in _folders(folder)} for folder in folders}
    if len(folders) == 1:
        (only,) = folders
        cure = f"; give {only}, which has the folders {some_of(sorted(inside[only]))}" if inside[only] else ""
        raise ValueError(f"{path} has only one class, {only.name}: nothing to tell apart{cure}{_instead(path)}")
    names = {folder.name.lower() for folder in folders}
    if (names & _ANNOTATIONS and names & _CONTAINERS) or any(
        folder.name.lower() in _CONTAINERS and inside[folder] for folder in folders
    ):
        raise ValueError(
            f"{path} has the folders {some_of([folder.name for folder in folders])}, which do not look like classes: "
            'images belong into one folder a class. If these are the classes, set layout to "classes"'
        )
    for folder, within in inside.items():
        if len({split for name in within if (split := _suggested_split(name))}) > 1:
            raise ValueError(
                f"{folder} holds {some_of(sorted(within))}: splits come first, such as {path / 'train' / folder.name}. "
                'If they are parts of one class, set layout to "classes"'
            )
        twins = [other.name for other in folders if len(within) > 1 and inside[other] == within]
        if len(twins) > 1:
            raise ValueError(
                f"{path} has the folders {some_of(twins)} with the same folders in each ({some_of(sorted(within))}): "
                "which are the classes? For splits call the outer ones train, validation and test; if they are the "
                'classes, set layout to "classes"'
            )
    return folders


def _read_split(folders: list[Path]) -> EncodedSet:
    paths: list[Path] = []
    targets: list[int] = []
    for number, folder in enumerate(folders):
        files = sorted(_files_below(folder))
        if not files:
            raise ValueError(f"the class folder {folder} is empty: fill it or take it away")
        paths += files
        targets += [number] * len(files)
    return EncodedSet(Encoded(paths), torch.tensor(targets))


def _without_labels(path: Path, remarks: list[str]) -> EncodedDataset:
    files = _images_in(path)
    if not files:
        raise ValueError(f"{path} has no class folders: images belong into one folder a class{_instead(path)}")
    if unread := _label_files(path):
        remarks = [*remarks, f"{some_of([file.name for file in unread])} not read{_CURE}"]
    targets = torch.zeros(len(files), dtype=torch.long)
    return EncodedDataset({"train": EncodedSet(Encoded(files), targets)}, (), tuple(remarks))


_CURE = ": labels are read from folders or from metadata.csv (or .jsonl, .parquet) with the columns file_name and label"


def _instead(path: Path) -> str:
    """What lies there in place of class folders."""
    if unread := [file for file in _plain_files(path) if file.suffix.lower() in _LABEL_ENDINGS]:
        return f". {some_of([file.name for file in unread])} is not read{_CURE}"
    found = sorted(file.name for file in _plain_files(path))
    return f". It has {some_of(found)}" if found else ""


def _loose(images: list[Path], folder: Path, data: DataSettings) -> str:
    text = f"{len(images)} images lie beside the class folders of {folder} ({some_of([file.name for file in images])})"
    if data.bad_files == "error":
        raise ValueError(f'{text}: sort them in, or leave them out with bad_files="skip"')
    return f"not read: {text}"


def _label_files(folder: Path) -> list[Path]:
    """Files that may hold labels."""
    return [
        file
        for file in _plain_files(folder)
        if file.name not in METADATA
        and (
            file.suffix.lower() in _LABEL_ENDINGS or (file.suffix.lower() == ".txt" and _LABEL_WORDS.search(file.stem))
        )
    ]


def _metadata_of(folder: Path) -> Path | None:
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} both hold metadata: take one away")
    return found[0] if found else None


def _suggested_split(name: str) -> str | None:
    """The split that a folder's name suggests: "training_set" and "val2017" do, "trains" does not."""
    words = [SPLIT_NAMES[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLIT_NAMES]
    return words[0] if len(set(words)) == 1 else None


def images_below(folder: Path) -> Iterator[Path]:
    """The image files in a folder and in the folders in it, sorted folder by folder."""
    return (file for file in _files_below(folder) if file.suffix.lower() in IMAGES)


def _images_in(path: Path) -> list[Path]:
    return [file for file in _plain_files(path) if file.suffix.lower() in IMAGES]


def _folders(path: Path) -> list[Path]:
    return [child for child, is_folder in _children(path) if is_folder]


def _check_links(path: Path) -> None:
    """Refuses links to nowhere, or back, where classes or splits lie; within a class they are bad files, or skipped."""
    for child in _plain_files(path):
        if not child.suffix and child.is_symlink() and not child.exists():
            raise ValueError(f"{child} is a link to {os.readlink(child)}, which does not exist: mend or remove it")
    for child in _folders(path):
        if child.is_symlink() and path.resolve().is_relative_to(child.resolve()):
            raise ValueError(f"{child} is a link back to {child.resolve()}, which holds it: remove it")


def _plain_files(path: Path) -> list[Path]:
    return [child for child, is_folder in _children(path) if not is_folder]


def _children(path: Path) -> list[tuple[Path, bool]]:
    """What lies in a folder, sorted, but for hidden files and litter; and whether it is, or links to, a folder."""
    try:
        with os.scandir(path) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return [
        (path / name, is_folder)
        for name, is_folder in found
        if not name.startswith(".") and name.lower() not in _LITTER
    ]


def _files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files in a folder and the folders in it, links followed; a link back to a folder above is not."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for child, is_folder in _children(folder):
        if is_folder:
            yield from _files_below(child, (*above, real))
        else:
            yield child
