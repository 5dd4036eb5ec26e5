"""Tables of images: label columns of every type, files that are not read, sizes that cannot be."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import patchmerger.data.tables as tables_module
from patchmerger.data import DataSettings, load_images, read_images
from patchmerger.data.sources import open_source


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("PATCHMERGER_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, labels: Any, *, images: Any = None, name: str = "train", column: str = "label") -> Path:
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
    cells = [{"bytes": png(n), "path": None} for n in range(len(labels))] if images is None else images
    pa.parquet.write_table(pa.table({"image": pa.array(cells), column: labels}), folder / f"{name}.parquet")
    return folder


TWO = {
    "booleans": ([False, True], ("False", "True")),
    "whole numbers": ([3, 7], ("3", "7")),
    "negative numbers": ([-1, 1], ("-1", "1")),
    "unsigned bytes": (pa.array([0, 1], pa.uint8()), ("0", "1")),
    "numbers beyond 2**53": ([2**60, 2**60 + 1], (str(2**60), str(2**60 + 1))),
    "whole floats": ([0.0, 1.0], ("0", "1")),
    "half precision": (pa.array(np.array([0, 1], np.float16)), ("0", "1")),
    "strings": (["a", "b"], ("a", "b")),
    "strings of digits": (["02", "10"], ("02", "10")),
    "large strings": (pa.array(["a", "b"], pa.large_string()), ("a", "b")),
    "bytes": ([b"a", b"b"], ("a", "b")),
    "categories": (pa.array(["b", "a", "b"]).dictionary_encode()[1:], ("a", "b")),
}


@pytest.mark.parametrize("kind", TWO)
def test_labels_of_every_type_that_has_classes(tmp_path: Path, kind: str) -> None:
    labels, names = TWO[kind]
    images = read_images(DataSettings(str(write(tmp_path, labels))))
    assert images.class_names == names
    assert images.sets["train"].targets.tolist() == [0, 1]


def test_categories_of_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [png(0), png(1), png(2)], "label": pd.Categorical(["b", "a", "b"])})
    frame.to_parquet(tmp_path / "train.parquet")
    images = read_images(DataSettings(str(tmp_path)))
    assert images.class_names == ("a", "b")
    assert images.sets["train"].targets.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        ([["a"], ["a", "b"], []], ("a", "b"), [[1, 0], [1, 1], [0, 0]]),
        ([[2], [2, 5], []], ("2", "5"), [[1, 0], [1, 1], [0, 0]]),
        ([[True, False], [True, True]], ("0", "1"), [[1, 0], [1, 1]]),  # a yes or no for each class
        ([[1, 0, 0], [1, 1, 0]], ("0", "1", "2"), [[1, 0, 0], [1, 1, 0]]),
        ([[0.0, 1.0], [1.0, 1.0]], ("0", "1"), [[0, 1], [1, 1]]),
        ([[0, 1], [1, 0]], ("0", "1"), [[0, 1], [1, 0]]),  # as names they would say both classes of every image
    ],
)
def test_several_labels_an_image(tmp_path: Path, labels: Any, names: tuple[str, ...], targets: Any) -> None:
    images = read_images(DataSettings(str(write(tmp_path, labels))))
    assert images.class_names == names
    assert images.sets["train"].targets.tolist() == targets


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1.0], r"column 'label' holds numbers that are not whole \(0\.5\)"),
        ([0, None], r"1 of 2 images have none in column 'label'"),
        (["a", None], r"1 of 2 images have none in column 'label'"),
        (["a", ""], r"1 of 2 images have none in column 'label'"),
        ([0.0, float("nan")], r"1 of 2 images have none in column 'label'"),
        ([None, None], r"2 of 2 images have none"),
        ([["a"], None], r"1 of 2 images have none"),
        ([["a"], ["b", None]], r"1 of 2 images have none"),
        ([{"x": 1}, {"x": 2}], r"column 'label' holds dict"),
        ([[[1]], [[2]]], r"column 'label' holds list"),
        (pa.array([1, 2], pa.timestamp("s")), r"column 'label' holds datetime"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_images(DataSettings(str(write(tmp_path, labels))))


def test_a_column_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column 'image' holds .*int64.*, not images"):
        read_images(DataSettings(str(write(tmp_path, [0, 1], images=[1, 2]))))
    with pytest.raises(ValueError, match=r"2 of 2 files(.|\n)*row 0 of train: not an image: it is empty"):
        read_images(DataSettings(str(write(tmp_path, [0, 1], images=[{"a": 1}, None]))))


def test_names_of_a_label_column(tmp_path: Path) -> None:
    assert open_source(DataSettings(str(write(tmp_path, [0, 1], column="category")))).class_names == ("0", "1")
    table = pa.table({"image": pa.array([png(0), png(1)]), "label": pa.array([0, 1]), "target": pa.array([1, 1])})
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"2 columns may be the label: label, target\. Name it with .*'label'"):
        open_source(DataSettings(str(tmp_path)))
    assert open_source(DataSettings(str(tmp_path), label="label")).splits["train"].targets.tolist() == [0, 1]


def test_files_that_the_names_of_splits_leave_out_are_named(tmp_path: Path) -> None:
    for name in ("train", "test", "more"):
        write(tmp_path, [0, 1] * 20, name=name)
    with pytest.warns(UserWarning, match=r"not read: more\.parquet"):
        images = load_images(DataSettings(str(tmp_path)), seed=0)
    assert "not read: more.parquet" in images.description


def test_a_table_of_absurd_size_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int8), ["a"])
    pa.parquet.write_table(pa.table({"image": rows, "label": rows}), tmp_path / "train.parquet")
    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    with pytest.raises(ValueError, match=r"train\.parquet says that it holds 3,000,000 rows .* but is of [\d,]+ bytes"):
        read_images(DataSettings(str(tmp_path)))


def test_columns_that_take_far_more_memory_than_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "_BYTES", 2**20)
    file = tmp_path / "train.parquet"
    zeros = pa.array([bytes(2**20)] * 8)
    pa.parquet.write_table(pa.table({"image": zeros}), file, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < 2**14
    with pytest.raises(ValueError, match=r"bytes, but is of [\d,]+ bytes: it is damaged"):
        read_images(DataSettings(str(tmp_path)))


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_damaged_table_is_named(tmp_path: Path, keep: int) -> None:
    file = write(tmp_path, [0, 1]) / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"train\.parquet is no parquet file, or is damaged"):
        read_images(DataSettings(str(tmp_path)))


def test_a_table_with_a_damaged_middle_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, [0, 1] * 50) / "train.parquet"
    data = bytearray(file.read_bytes())
    data[60:600] = bytes(540)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"cannot be read"):
        read_images(DataSettings(str(tmp_path)))
