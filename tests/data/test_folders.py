"""Folders of image files: links, layouts that may mean two things."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from torchvision.datasets import ImageFolder

from data.image_folders import fill, found, tree
from patchmerger.data import DataSettings, load_images, read_images
from patchmerger.data.sources import open_source

Make = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("layout", ["beside files", "alone", "a class", "a link to a link", "the source"])
def test_links_to_folders_are_followed_as_by_torchvision(tmp_path: Path, layout: str) -> None:
    tree(tmp_path / "store", "cat", "dog", count=5)
    root = tmp_path / "root"
    for name in ("cat", "dog"):
        target = tmp_path / "store" / name
        if layout == "a class":
            root.mkdir(exist_ok=True)
            (root / name).symlink_to(target)
        elif layout != "the source":
            fill(root / name, 3 if layout == "beside files" else 0)
            if layout == "a link to a link":
                (tmp_path / f"middle-{name}").symlink_to(target)
                target = tmp_path / f"middle-{name}"
            (root / name / "more").symlink_to(target)
    if layout == "the source":
        root.symlink_to(tmp_path / "store")
    images = read_images(DataSettings(str(root))).sets["train"]
    theirs = ImageFolder(root)
    assert (len(images), images.targets.tolist()) == (len(theirs), theirs.targets)


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog")
    (root / "cat" / "up").symlink_to(root / "cat")
    (root / "dog" / "a").mkdir()
    (root / "dog" / "b").mkdir()
    (root / "dog" / "a" / "to-b").symlink_to(root / "dog" / "b")
    (root / "dog" / "b" / "to-a").symlink_to(root / "dog" / "a")
    assert found(root) == {"train": 4}
    (root / "loop").symlink_to(root)
    with pytest.raises(ValueError, match=r"loop is a link back to .*pets, which holds it: remove it"):
        found(root)


def test_a_dead_link_is_a_bad_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog", count=10)
    (root / "cat" / "gone.png").symlink_to("/nowhere/gone.png")
    (root / "dog" / "more").symlink_to("/nowhere/else")
    with pytest.raises(ValueError, match=r"2 of 22 files(.|\n)*gone\.png: a link to /nowhere/gone\.png, which"):
        read_images(DataSettings(str(root)))
    images = read_images(DataSettings(str(root), bad_files="skip", memory_gib=0))
    assert (len(images.sets["train"]), len(images.skipped)) == (20, 2)
    (root / "fox").symlink_to("/nowhere/fox")
    with pytest.raises(ValueError, match=r"fox is a link to /nowhere/fox, which does not exist"):
        read_images(DataSettings(str(root)))


def test_what_is_no_regular_file_is_a_bad_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog")
    os.mkfifo(root / "cat" / "pipe.png")  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"pipe\.png: not a regular file"):
        read_images(DataSettings(str(root)))


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "pets", "cat", "dog", "dog/more")
    scandir = os.scandir

    def deny(path: Any) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(ValueError, match=r"dog/more cannot be read: .*Permission denied"):
        read_images(DataSettings(str(root)))


# layouts


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], r"train.*: they may be splits or classes.*layout to \"classes\""),  # Kaggle's
        (["train"], r"has the folders train: they may be splits or classes"),
        (["training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog"], r"test_set, training_set: they may"),
        (["seg_train/sea", "seg_train/ice", "seg_test/sea", "seg_test/ice"], r"seg_test, seg_train: they may be"),
        (["train2017", "val2017"], r"train2017, val2017: they may be splits or classes"),
        (["train/freight", "train/express", "bus", "car"], r"the splits train beside bus, car.*all of them classes"),
        (["train/cat", "train/dog", "extra/cat", "extra/dog"], r"the splits train beside extra, which hold images"),
        (["images/cat", "images/dog"], r"only one class, images: .*give .*images, which has the folders cat, dog"),
        (["images", "labels"], r"images, labels, which do not look like classes"),
        (["JPEGImages", "Annotations"], r"Annotations, JPEGImages, which do not look like classes"),
        (["images/cat", "images/dog", "sketches"], r"images, sketches, which do not look like classes"),
        (["train/images", "train/labels", "val/images", "val/labels"], r"images, labels, which do not look like"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], r"cat holds test, train: splits come first.*train/cat"),
        (["part1/cat", "part1/dog", "part2/cat", "part2/dog"], r"part1, part2 with the same folders in each \(cat,"),
        (["val/cat", "val/dog", "valid/cat", "valid/dog"], r"both hold the validation split"),
    ],
)  # fmt: skip
def test_folders_of_either_meaning_are_refused_by_name(tmp_path: Path, folders: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(DataSettings(str(tree(tmp_path / "data", *folders))))


@pytest.mark.parametrize(
    "folders",
    [
        ["bus", "train"],
        ["images", "sketches"],
        ["photos", "data"],
        ["train_station", "bus_station"],
        ["test_tube", "flask"],
        ["cat/old", "cat/new", "dog"],
        ["labels", "boxes"],
    ],
)
def test_classes_that_only_sound_like_something_else(tmp_path: Path, folders: list[str]) -> None:
    source = open_source(DataSettings(str(tree(tmp_path / "data", *folders))))
    assert source.class_names == tuple(sorted({folder.split("/")[0] for folder in folders}))
    assert source.remarks == ()


def test_the_layout_can_be_said(tmp_path: Path) -> None:
    path = tree(tmp_path / "data", "train/freight", "train/express", "test/freight", "test/express", "bus")
    assert open_source(DataSettings(str(path), layout="classes")).class_names == ("bus", "test", "train")
    source = open_source(DataSettings(str(path), layout="splits"))
    assert (list(source.splits), source.class_names) == (["test", "train"], ("express", "freight"))
    assert source.remarks == ("not read, for want of class folders: bus",)
    with pytest.raises(ValueError, match=r'layout \("splits"\): .* has no folders train, validation or test.*cat, dog'):
        open_source(DataSettings(str(tree(tmp_path / "pets", "cat", "dog")), layout="splits"))


def test_images_beside_class_folders_are_not_dropped_in_silence(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog", ".", count=20)
    with pytest.raises(ValueError, match=r"20 images lie beside the class folders.*sort them in"):
        open_source(DataSettings(str(root)))
    splits = tree(tmp_path / "split", "train/cat", "train/dog", "test/cat", "test/dog", ".")
    with pytest.raises(ValueError, match=r"2 images lie beside the class folders of .*split \(000\.png, 001\.png\)"):
        open_source(DataSettings(str(splits)))
    with pytest.warns(UserWarning, match=r"not read: 20 images lie beside"):
        images = load_images(DataSettings(str(root), bad_files="skip"), seed=0)
    assert "not read: 20 images lie beside" in images.description


def test_tables_beside_images_are_not_taken_for_all(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog")
    datasets.Dataset.from_dict({"feature": [1.0]}).to_parquet(root / "features.parquet")
    with pytest.raises(ValueError, match=r"tables or shards \(features\.parquet\) and images \(cat/000\.png\)"):
        open_source(DataSettings(str(root)))


def test_label_files_beside_class_folders_are_named_as_not_read(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "cat", "dog")
    (root / "labels.csv").write_text("file,label\n")
    (root / "classes.txt").write_text("cat\n")
    (root / "README.txt").write_text("pets\n")
    assert open_source(DataSettings(str(root))).remarks == (
        "not read, for the classes are the folders: classes.txt, labels.csv",
    )


@pytest.mark.parametrize("folder", [".", "images"])
@pytest.mark.parametrize("name", ["labels.csv", "annotations.json", "train.tsv"])
def test_label_files_that_are_not_read_are_named_and_never_one_class(tmp_path: Path, folder: str, name: str) -> None:
    root = tree(tmp_path / "pets", folder, count=20)
    (root / name).write_text("")
    with pytest.raises(ValueError, match=rf"{name}.* not read: labels are read from .*metadata\.csv"):
        load_images(DataSettings(str(root)), seed=0)
