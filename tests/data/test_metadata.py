"""Folders of image files with their labels in a table beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from data.image_folders import fill, found, tree
from patchmerger.data import DataSettings, load_images, read_images
from patchmerger.data.folders import is_unlabelled
from patchmerger.data.loading import has_labels
from patchmerger.data.sources import open_source

Make = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("own_cache")


def metadata(root: Path, rows: list[tuple[str, Any]], column: str = "label", name: str = "metadata.csv") -> Path:
    table = datasets.Dataset.from_dict({"file_name": [row[0] for row in rows], column: [row[1] for row in rows]})
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[Path(name).suffix](root / name)
    return root


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("labels", [["cat", "dog"], [3, 7], [True, False]])
def test_labels_in_metadata_are_read(tmp_path: Path, name: str, labels: list[Any]) -> None:
    root = fill(tmp_path / "pets", 4)
    metadata(root, [(f"{number:03}.png", labels[number % 2]) for number in range(4)], name=name)
    assert not is_unlabelled(DataSettings(str(root)))
    source = open_source(DataSettings(str(root)))
    assert source.class_names == tuple(str(label) for label in sorted(labels))
    assert source.splits["train"].targets.tolist() == [sorted(labels).index(labels[number % 2]) for number in range(4)]
    assert source.remarks == ()


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_without_labels_leaves_images_unlabelled(tmp_path: Path, name: str) -> None:
    rows = [(f"{number:03}.png", f"picture {number}") for number in range(12)]
    root = metadata(fill(tmp_path / "photos", 12), rows, column="caption", name=name)
    assert not has_labels(DataSettings(str(root)))
    with pytest.warns(UserWarning, match="is not read: it has no column label"):
        assert load_images(DataSettings(str(root)), seed=0, labels_needed=False).class_names == ()
    assert has_labels(DataSettings(str(root), label="caption"))


def test_metadata_in_folders_of_splits_in_a_column_or_in_file_names(tmp_path: Path) -> None:
    for split in ("train", "test"):
        metadata(fill(tmp_path / "a" / split), [("000.png", "x"), ("001.png", "y")])
    assert found(tmp_path / "a") == {"test": 2, "train": 2}
    tree(tmp_path / "b", "train", "val")
    metadata(tmp_path / "b", [(f"{split}/00{number}.png", number) for split in ("train", "val") for number in (0, 1)])
    assert found(tmp_path / "b") == {"train": 2, "validation": 2}
    fill(tmp_path / "c", 3)
    (tmp_path / "c" / "metadata.csv").write_text(
        "file_name,label,split\n000.png,x,train\n001.png,y,train\n002.png,x,test\n"
    )
    assert found(tmp_path / "c") == {"train": 2, "test": 1}


def test_metadata_beside_class_folders(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog")
    metadata(root, [("cat/000.png", "a cat")], column="caption")
    source = open_source(DataSettings(str(root)))
    assert source.class_names == ("cat", "dog")
    assert len(source.remarks) == 1
    assert "metadata.csv is not read: it has no column label" in source.remarks[0]
    rows = [(f"{kind}/00{number}.png", f"{kind}{number}") for kind in ("cat", "dog") for number in (0, 1)]
    metadata(root, rows, column="individual")
    source = open_source(DataSettings(str(root), label="individual"))
    assert len(source.class_names) == 4
    assert source.remarks == ("labels are those of metadata.csv, not the folders",)


def test_metadata_without_labels_does_not_hide_splits(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "train/cat", "train/dog", "test/cat", "test/dog")
    metadata(root, [("train/cat/000.png", "a cat")], column="caption")
    source = open_source(DataSettings(str(root)))
    assert (list(source.splits), source.class_names) == (["test", "train"], ("cat", "dog"))
    assert "metadata.csv is not read" in source.remarks[0]
    metadata(tree(tmp_path / "flat", "train", "test"), [("train/000.png", "a cat")], column="caption")
    with pytest.raises(ValueError, match="test, train: they may be splits or classes"):
        open_source(DataSettings(str(tmp_path / "flat")))
    metadata(tree(tmp_path / "half", "train/cat", "train/dog", "test/cat") / "train", [("cat/000.png", 1)])
    with pytest.raises(ValueError, match=r"train/metadata\.csv lies beside images, but .* no such file in .*test"):
        open_source(DataSettings(str(tmp_path / "half")))


def test_lists_of_labels_in_metadata(tmp_path: Path) -> None:
    root = metadata(fill(tmp_path / "pets"), [("000.png", ["a", "b"]), ("001.png", ["b"])], name="metadata.jsonl")
    source = open_source(DataSettings(str(root)))
    assert source.splits["train"].targets.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n000.png,a\n", r"1 images have no row in .*metadata\.csv \(001\.png\)"),
        ("file_name,label\n000.png,a\n001.png,\n", r"1 of 2 images have none in column 'label'"),
        ("file_name,label\n000.png,a\n000.png,b\n", r"more than one row for 000\.png"),
        ("file_name,label\n../x.png,a\n", r"file_name \('\.\./x\.png'\) that is no path within its folder"),
        ("file_name,label\n/etc/passwd,a\n", r"file_name \('/etc/passwd'\)"),
        ("name,label\n000.png,a\n", r"no column 'file_name'; it has name, label"),
        ("file_name,label,class\n000.png,a,b\n", r"2 columns may be the label: label, class"),
        ("file_name,label,split\n000.png,a,train\n001.png,b,fold7\n", r"column split with fold7, train"),
        ("", r"metadata\.csv cannot be read"),
        ("file_name,caption\n000.png,a\n001.png,b\n", r"metadata\.csv is not read: it has no column label"),
    ],
)
def test_metadata_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (fill(tmp_path / "pets") / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_images(DataSettings(str(tmp_path / "pets")))


def test_rows_without_a_file_are_bad_files(tmp_path: Path) -> None:
    root = metadata(fill(tmp_path / "pets", 2), [("000.png", "a"), ("001.png", "b"), ("gone.png", "b")])
    with pytest.raises(ValueError, match=r"gone\.png\): does not exist"):
        read_images(DataSettings(str(root)))
