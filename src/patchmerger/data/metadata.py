"""Labels in a table beside images: metadata.csv, .jsonl or .parquet, as Hugging Face's imagefolder has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets

from patchmerger.data.encoded import EncodedDataset
from patchmerger.data.settings import DataSettings
from patchmerger.data.splits import SPLIT_NAMES
from patchmerger.data.tables import LABELS, class_label, only_column, read_table, values_of

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


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
    label = data.label
    if label is None and not any(name in LABELS or class_label(first.features[name]) for name in first.column_names):
        return None
    label = label or only_column(first, "label")
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
                f"{table} has a column split with {', '.join(sorted(set(said))[:5])}: it must say train, validation or "
                "test"
            )
        return {"train": list(range(len(said)))}
    found: dict[str, list[int]] = {}
    for row, name in enumerate(said):
        found.setdefault(SPLIT_NAMES[name.lower()], []).append(row)
    return found
