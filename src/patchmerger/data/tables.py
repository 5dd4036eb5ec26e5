"""Tables, of the Hugging Face library or beside images: which column is the image, which the label, the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, cast

import datasets
import pyarrow
import pyarrow.parquet

from patchmerger.data.decoding import Encoded, EncodedDataset, EncodedSet, Picture
from patchmerger.data.labels import Classes
from patchmerger.data.settings import DataSettings
from patchmerger.data.splits import SPLIT_NAMES

LABELS = ("label", "labels", "cls", "class", "target", "category")
"""Names of a label column that says nothing of its kind; WebDataset shards have ``cls``."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables of labels beside images, as Hugging Face's imagefolder has them."""

_SIZES = ("compressed", "uncompressed")
_ROWS, _BYTES, _RATIO = 10**6, 2**30, 200  # a parquet file with more than these is not one of images


class TableColumn(Encoded):
    """The images of the only column of a table; not decoded."""

    def __init__(self, column: datasets.Dataset, split: str) -> None:
        super().__init__(column, split, itemgetter(column.column_names[0]))

    def read(self, index: int) -> Picture:
        """The bytes of the image in row ``index``."""
        return picture_in(super().read(index))

    def name(self, index: int) -> str:
        """The split and the row, with the path that is stored there if there is one."""
        cell: Any = super().read(index)
        return f"row {index} of {self.origin}" + (f" ({cell['path']})" if cell and cell["path"] else "")


def picture_in(item: Any) -> Picture:
    """The picture in a cell of an image column that is not decoded; no bytes at all for an empty cell."""
    if item is None or (item["bytes"] is None and item["path"] is None):
        return b""
    if item["bytes"] is not None:
        return cast(bytes, item["bytes"])
    if "://" in item["path"]:
        return cast(Picture, datasets.Image().decode_example(item))
    return Path(item["path"])


def read_table(
    table: datasets.Dataset | Mapping[str, datasets.Dataset], *, image: str | None = None, label: str | None = None
) -> EncodedDataset:
    """Finds images and labels in a dataset, or several by split; a lone one is the training split. Nothing is decoded.

    The image column is by default the only one with the ``Image`` feature, or else ``image``; the label column the only
    one of class labels, or else the only one of ``LABELS``.

    Raises:
        ValueError: If a column is missing or ambiguous, a label is missing, or the classes of two splits differ.
    """
    named = dict(table) if isinstance(table, Mapping) else {"train": table}
    known = {name: SPLIT_NAMES[name.lower()] for name in named if name.lower() in SPLIT_NAMES}
    remarks = [f"splits not read: {', '.join(rest)}"] if (rest := [n for n in named if n not in known]) else []
    if "train" not in known.values():
        raise ValueError(f"there is no split named train; found: {', '.join(named)}")
    if len(set(known.values())) < len(known):
        raise ValueError(f"more than one split would be the same of train, validation, test; found: {', '.join(named)}")
    first = next(name for name, split in known.items() if split == "train")
    image = image or only_column(named[first], "image")
    label = label or only_column(named[first], "label")
    for column in (image, label):
        for name in known:
            if column not in named[name].column_names:
                raise ValueError(f"split {name} has no column {column!r}; it has {', '.join(named[name].column_names)}")
    values = {name: values_of(named[name], label) for name in known}
    for name in [name for name, split in known.items() if split == "test"]:
        if all(value in (None, -1) for value in values[name]):
            remarks.append(f"split {name} has no labels and is not read")
            del known[name], values[name]
    declared = {name: class_label(named[name].features[label]) for name in known}
    for name, names in declared.items():
        if names != declared[first]:
            raise ValueError(f"the classes of the splits {first} and {name} differ in column {label!r}")
    classes = Classes.of(declared[first], [value for rows in values.values() for value in rows], label)
    splits: dict[str, EncodedSet] = {}
    for name, split in known.items():
        column = named[name].select_columns([image])
        try:
            column = column.cast_column(image, datasets.Image(decode=False))
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise ValueError(f"column {image!r} holds {column.features[image]}, not images: {error}") from error
        targets = classes.targets(values[name], name)
        splits[split] = EncodedSet(TableColumn(column.with_format(None), name), targets)
    return EncodedDataset(splits, classes.names, tuple(remarks))


def check_parquet(folder: Path) -> None:
    """Refuses parquet files that say of themselves what cannot be, before memory is taken for it."""
    for path in sorted(folder.rglob("*.parquet")):
        size = path.stat().st_size
        try:
            said = pyarrow.parquet.read_metadata(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no parquet file, or is damaged: {error}") from error
        columns = [said.row_group(g).column(c) for g in range(said.num_row_groups) for c in range(said.num_columns)]
        stored, whole = (sum(getattr(column, f"total_{kind}_size") for column in columns) for kind in _SIZES)
        if stored > size or said.num_rows > max(_ROWS, size) or whole > max(_BYTES, _RATIO * size):
            raise ValueError(
                f"{path} says that it holds {said.num_rows:,} rows and {whole:,} bytes, but is of {size:,} bytes: it "
                "is damaged, or not meant to be read"
            )


def values_of(table: datasets.Dataset, column: str) -> list[Any]:
    """All values of a column."""
    return list(table.select_columns([column]).with_format(None)[:][column])


def class_label(feature: Any) -> tuple[str, ...] | None:
    """The classes that a column declares, of one label or of a list of them."""
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def only_column(table: datasets.Dataset | datasets.IterableDataset, what: Literal["image", "label"]) -> str:
    """The one column that is the image or the label, by its feature or else by its name; features must be known."""
    features = table.features
    found = [
        name for name, f in features.items() if (isinstance(f, datasets.Image) if what == "image" else class_label(f))
    ]
    if not found:
        found = [name for name in (("image",) if what == "image" else LABELS) if name in features]
    if len(found) == 1:
        return str(found[0])
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    many = f"{len(found)} columns may be the {what}: {', '.join(found)}" if found else f"no column is the {what}"
    raise ValueError(f"{many}. Name it with the option {what!r}. The columns are {columns}")


def read_metadata(tables: dict[str, Path], images: dict[str, list[Path]], data: DataSettings) -> EncodedDataset | None:
    """The images that the rows of tables name in ``file_name``, with the labels in another column, ``data.label``.

    Of one table for all images the splits are those in its column ``split``, or the folders that the file names begin
    with, where all of these are names of splits. ``images`` are all image files, to be sure that none is left out.
    ``None`` where no column holds labels.

    Raises:
        ValueError: A table without ``file_name``, a file that is named twice or lies elsewhere, a label that is
            missing, an image without a row (unless ``bad_files`` is ``"skip"``).
    """
    rows = {split: _read(path) for split, path in tables.items()}
    first = next(iter(rows.values()))
    if not _has_labels(first, data.label):
        return None
    label = data.label or only_column(first, "label")
    made, files, remarks = {}, [], []
    for split, table in rows.items():
        for column in ("file_name", label):
            if column not in table.column_names:
                raise ValueError(f"{tables[split]} has no column {column!r}; it has {', '.join(table.column_names)}")
        files = [_inside(tables[split], name) for name in table["file_name"]]
        remarks += _check_complete(tables[split], files, images[split], data)
        columns = {"file_name": [str(file) for file in files], label: values_of(table, label)}
        features = datasets.Features({"file_name": datasets.Value("string"), label: table.features[label]})
        made[split] = datasets.Dataset.from_dict(columns, features)
    if list(rows) == ["train"]:
        parts = _splits_within(tables["train"], first, files)
        made = {split: made["train"].select(part) for split, part in parts.items()}
    found = read_table(made, image="file_name", label=label)
    return replace(found, remarks=(*remarks, *found.remarks))


def says_labels(path: Path, label: str | None) -> bool:
    """Whether a table beside images has a column of labels, or ``label`` names one."""
    return _has_labels(_read(path), label)


def _has_labels(table: datasets.Dataset, label: str | None) -> bool:
    return label is not None or any(name in LABELS or class_label(f) for name, f in table.features.items())


def _read(path: Path) -> datasets.Dataset:
    try:
        if path.suffix == ".csv":
            return datasets.Dataset.from_csv(str(path), keep_default_na=False, na_values=[""])
        return (datasets.Dataset.from_json if path.suffix == ".jsonl" else datasets.Dataset.from_parquet)(str(path))
    except Exception as error:  # the reader raises nearly anything on a broken file
        reason = error.__cause__ or error
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _inside(table: Path, name: object) -> Path:
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{table} has a file_name ({name!r}) that is no path within its folder")
    return table.parent / name


def _check_complete(table: Path, named: list[Path], there: list[Path], data: DataSettings) -> list[str]:
    known = set(named)
    if len(known) < len(named):
        twice = next(file for row, file in enumerate(named) if file in named[:row])
        raise ValueError(f"{table} has more than one row for {twice.name}: an image has one row")
    if not (missing := [file for file in there if file not in known]):
        return []
    text = f"{len(missing)} images have no row in {table} ({', '.join(file.name for file in missing[:5])})"
    if data.bad_files == "error":
        raise ValueError(f'{text}: add their labels, or leave them out with bad_files="skip"')
    return [f"not read: {text}"]


def _splits_within(table: Path, rows: datasets.Dataset, files: list[Path]) -> dict[str, list[int]]:
    """Rows by split, where the table tells splits apart."""
    if "split" in rows.column_names:
        said = [str(name) for name in rows["split"]]
    else:
        said = [file.relative_to(table.parent).parts[0] for file in files]
    if not all(name.lower() in SPLIT_NAMES for name in said):
        if "split" in rows.column_names:
            raise ValueError(
                f"{table} has a column split with {', '.join(sorted(set(said))[:5])}: not train, validation or test"
            )
        return {"train": list(range(len(said)))}
    found: dict[str, list[int]] = {}
    for row, name in enumerate(said):
        found.setdefault(SPLIT_NAMES[name.lower()], []).append(row)
    return found
