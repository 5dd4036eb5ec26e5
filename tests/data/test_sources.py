import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from patchmerger.data import DataSettings, read_images
from patchmerger.data.sources import open_source

from .conftest import picture

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_shelf(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("PATCHMERGER_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def table(count: int = 6, *, labels: Any = None, label: Any = None, **more: Any) -> datasets.Dataset:
    feature = label or datasets.ClassLabel(names=["cat", "dog"])
    columns = {"photo": [picture(i) for i in range(count)], "kind": labels or [i % 2 for i in range(count)], **more}
    extra = {name: datasets.Value("int64") for name in more}
    return datasets.Dataset.from_dict(
        columns, features=datasets.Features({"photo": datasets.Image(), "kind": feature, **extra})
    )


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1)


def test_digits() -> None:
    images = read_images(DataSettings("digits"))
    values, targets = load_digits(return_X_y=True)
    train = images.sets["train"]
    assert (len(train), train[0].shape, images.class_names) == (1797, (3, 8, 8), tuple("0123456789"))
    assert torch.equal(train.targets, torch.from_numpy(targets))
    expected = torch.from_numpy(values.reshape(-1, 1, 8, 8) * 255 / 16).round().byte().expand(-1, 3, -1, -1)
    assert torch.equal(train.gather(range(1797)), expected)


def test_class_folders(class_folders: Make) -> None:
    path = class_folders(count=3)
    (path / ".hidden").mkdir()
    (path / "cat" / ".DS_Store").write_bytes(b"x")
    (path / "dog" / "more").mkdir()
    picture(7).save(path / "dog" / "more" / "a.bmp")
    images = read_images(DataSettings(str(path)))
    assert images.class_names == ("cat", "dog")
    assert images.sets["train"].targets.tolist() == [0] * 3 + [1] * 4
    assert torch.equal(images.sets["train"][1], pixels(1))


def test_split_folders_by_any_of_their_names(class_folders: Make, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        class_folders(f"pets/{split}", count=2)
    source = open_source(DataSettings(str(tmp_path / "pets")))
    assert {name: len(split.images) for name, split in source.splits.items()} == {
        "test": 4,
        "train": 4,
        "validation": 4,
    }


def test_a_class_may_be_called_train(class_folders: Make) -> None:
    assert open_source(DataSettings(str(class_folders(classes=("bus", "train"), count=1)))).class_names == (
        "bus",
        "train",
    )


def test_a_test_folder_without_classes_is_left_out_and_said(class_folders: Make, tmp_path: Path) -> None:
    class_folders("pets/train", count=2)
    (tmp_path / "pets/test").mkdir()
    picture(0).save(tmp_path / "pets/test/0.png")
    source = open_source(DataSettings(str(tmp_path / "pets")))
    assert list(source.splits) == ["train"]
    assert source.remarks == ("not read, for want of class folders: test",)


def test_folder_mistakes(class_folders: Make, tmp_path: Path) -> None:
    class_folders("a/train", count=1)
    class_folders("a/val", classes=("cat", "fox"), count=1)
    with pytest.raises(ValueError, match=r"the classes of .*train and .*val differ: dog, fox in only one"):
        open_source(DataSettings(str(tmp_path / "a")))
    (class_folders("b", count=1) / "empty").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*empty is empty"):
        open_source(DataSettings(str(tmp_path / "b")))
    class_folders("c/val", count=1)
    with pytest.raises(ValueError, match="has no training split; found: validation"):
        open_source(DataSettings(str(tmp_path / "c")))
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="d has no class folders"):
        open_source(DataSettings(str(tmp_path / "d")))
    class_folders("e/val", count=1)
    class_folders("e/valid", count=1)
    with pytest.raises(ValueError, match="both hold the validation split"):
        open_source(DataSettings(str(tmp_path / "e")))


@pytest.mark.parametrize("memory_gib", [2.0, 0.0])
def test_bad_files_are_named_or_skipped(class_folders: Make, memory_gib: float) -> None:
    path = class_folders(count=3)
    (path / "cat" / "notes.txt").write_text("no image")
    (path / "dog" / "000.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 7 files cannot be read(.|\n)*notes.txt: not an image(.|\n)*000.png"):
        read_images(DataSettings(str(path), memory_gib=memory_gib))
    images = read_images(DataSettings(str(path), memory_gib=memory_gib, bad_files="skip"))
    assert [str(Path(file.split(":")[0]).name) for file in images.skipped] == ["notes.txt", "000.png"]
    assert images.sets["train"].targets.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(images.sets["train"][3], pixels(1001))


def test_a_large_dataset_is_decoded_on_reading(class_folders: Make) -> None:
    path = class_folders(count=3)
    images = read_images(DataSettings(str(path), memory_gib=0)).sets["train"]
    assert torch.equal(images[4], pixels(1001))
    whole = (path / "cat" / "000.png").read_bytes()
    (path / "cat" / "000.png").write_bytes(whole[:-60])
    with pytest.raises(ValueError, match=r"000\.png cannot be decoded .*cut off"):
        images[0]


def test_pictures_of_all_kinds_in_one_folder(class_folders: Make) -> None:
    path = class_folders(count=1)
    for mode in ("L", "RGBA", "P", "1", "LA"):
        picture(0, mode).save(path / "cat" / f"{mode}.png")
    picture(0, "CMYK").save(path / "cat" / "CMYK.jpg")
    Image.fromarray(np.full((5, 7), 40000, np.uint16)).save(path / "cat" / "sixteen.png")
    images = read_images(DataSettings(str(path))).sets["train"]
    assert {tuple(images[i].shape) for i in range(len(images))} == {(3, 10, 12), (3, 5, 7)}
    assert {images[i].dtype for i in range(len(images))} == {torch.uint8}


def test_parquet_folder(tmp_path: Path) -> None:
    table(8).to_parquet(tmp_path / "train.parquet")
    table(4).to_parquet(tmp_path / "validation.parquet")
    images = read_images(DataSettings(str(tmp_path)))
    assert {name: len(split) for name, split in images.sets.items()} == {"train": 8, "validation": 4}
    assert images.class_names == ("cat", "dog")
    assert images.sets["train"].targets.tolist() == [0, 1] * 4
    assert torch.equal(images.sets["train"][5], pixels(5))


def test_saved_to_disk_with_a_bad_row(tmp_path: Path) -> None:
    rows = table(4).cast_column("photo", datasets.Image(decode=False))
    broken = rows.map(lambda row, i: {"photo": {"bytes": b"x", "path": "p.jpg"}} if i == 2 else row, with_indices=True)
    datasets.DatasetDict({"train": broken.cast_column("photo", datasets.Image())}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"row 2 of train \(p\.jpg\): not an image"):
        read_images(DataSettings(str(tmp_path / "saved")))
    images = read_images(DataSettings(str(tmp_path / "saved"), bad_files="skip"))
    assert images.sets["train"].targets.tolist() == [0, 1, 1]


def test_several_labels_an_image_become_zeros_and_ones(tmp_path: Path) -> None:
    kinds = datasets.List(datasets.ClassLabel(names=["cat", "dog", "fox"]))
    table(3, labels=[[], [0, 2], [1]], label=kinds).save_to_disk(tmp_path / "saved")
    targets = read_images(DataSettings(str(tmp_path / "saved"))).sets["train"].targets
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(("kind", "labels"), [("string", ["b", "a", "b"]), ("int64", [7, 3, 7])])
def test_labels_without_declared_classes(tmp_path: Path, kind: str, labels: list[Any]) -> None:
    table(3, labels=labels, label=datasets.Value(kind)).save_to_disk(tmp_path / "saved")
    images = read_images(DataSettings(str(tmp_path / "saved"), label="kind"))
    assert images.class_names == tuple(str(label) for label in sorted(set(labels)))
    assert images.sets["train"].targets.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"no column is the label\. Name it with the option 'label'"):
        open_source(DataSettings(str(tmp_path / "saved")))


def test_two_label_columns_need_a_choice(tmp_path: Path) -> None:
    other = datasets.ClassLabel(names=["x", "y"])
    table(4, coarse=[1, 1, 0, 0]).cast_column("coarse", other).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="2 columns may be the label: kind, coarse"):
        open_source(DataSettings(str(tmp_path / "saved")))
    assert open_source(DataSettings(str(tmp_path / "saved"), label="coarse")).splits["train"].targets.tolist() == [
        1,
        1,
        0,
        0,
    ]


def test_table_mistakes(tmp_path: Path) -> None:
    fox = datasets.ClassLabel(names=["cat", "fox"])
    for name, splits, message in [
        ("a", {"dev": table(4)}, "no split named train; found: dev"),
        ("b", {"train": table(4), "test": table(4, label=fox)}, "the classes of the splits train and test differ"),
        ("c", {"train": table(4, labels=[0, 1, -1, 1])}, r"no class \(1 of 4 images have none in column 'kind'\)"),
        ("d", {"train": table(4), "test": table(4).remove_columns("kind")}, "split test has no column 'kind'"),
    ]:
        datasets.DatasetDict(splits).save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            open_source(DataSettings(str(tmp_path / name)))


def test_an_unlabelled_test_split_is_left_out_and_said(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(4), "test": table(2, labels=[-1, -1])}).save_to_disk(tmp_path / "saved")
    source = open_source(DataSettings(str(tmp_path / "saved")))
    assert list(source.splits) == ["train"]
    assert source.remarks == ("split test has no labels and is not read",)


def test_hub_names_are_looked_for_on_the_shelf_first(
    class_folders: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders("pets", count=1)
    monkeypatch.setenv("PATCHMERGER_DATA", str(tmp_path))
    assert open_source(DataSettings("someone/pets")).class_names == ("cat", "dog")


def test_else_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*arguments: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        if arguments[0] == "someone/else":
            raise ConnectionError("no route")
        return datasets.DatasetDict({"train": table(4)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_source(DataSettings("someone/pets", subset="small")).splits["train"].images) == 4
    assert asked == [("someone/pets", "small")]
    with pytest.raises(FileNotFoundError, match=r"'someone/else' is neither a folder here, nor in \$PATCHMERGER_DATA"):
        open_source(DataSettings("someone/else"))


@pytest.mark.parametrize("source", ["", "cifar", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_an_unknown_source_names_what_is_understood(source: str) -> None:
    with pytest.raises(ValueError, match='Understood are: "digits"'):
        open_source(DataSettings(source))


SHELF = os.environ.get("PATCHMERGER_DATA")


@pytest.mark.skipif(not SHELF or not Path(SHELF, "cifar10").is_dir(), reason="needs $PATCHMERGER_DATA/cifar10")
def test_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHMERGER_DATA", str(SHELF))
    source = open_source(DataSettings("uoft-cs/cifar10"))
    assert {name: len(split.images) for name, split in source.splits.items()} == {"train": 50_000, "test": 10_000}
    assert source.splits["train"].targets.bincount().tolist() == [5000] * 10
