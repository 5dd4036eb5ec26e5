"""Folders of image files: links, layouts that may mean two things, labels in a table beside, images without labels."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from patchmerger.data import DataSettings, load_images, read_images
from patchmerger.data.folders import is_unlabelled, local_folder
from patchmerger.data.sources import open_source

Make = Callable[..., Path]


def fill(folder: Path, count: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(folder / f"{number:03}.png")
    return folder


def tree(root: Path, *folders: str, count: int = 2) -> Path:
    for folder in folders:
        fill(root / folder, count)
    return root


def found(path: Path, **settings: Any) -> dict[str, int]:
    return {name: len(split.images) for name, split in open_source(DataSettings(str(path), **settings)).splits.items()}


# links


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


# metadata


def metadata(root: Path, rows: list[tuple[str, Any]], column: str = "label", name: str = "metadata.csv") -> Path:
    table = datasets.Dataset.from_dict({"file_name": [row[0] for row in rows], column: [row[1] for row in rows]})
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[Path(name).suffix](root / name)
    return root


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("PATCHMERGER_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("labels", [["cat", "dog"], [3, 7], [True, False]])
def test_labels_in_metadata_are_read(tmp_path: Path, name: str, labels: list[Any]) -> None:
    root = fill(tmp_path / "pets", 4)
    metadata(root, [(f"{number:03}.png", labels[number % 2]) for number in range(4)], name=name)
    assert not is_unlabelled(str(root))
    source = open_source(DataSettings(str(root)))
    assert source.class_names == tuple(str(label) for label in sorted(labels))
    assert source.splits["train"].targets.tolist() == [sorted(labels).index(labels[number % 2]) for number in range(4)]
    assert source.remarks == ()


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
    with pytest.raises(ValueError, match=r"gone\.png: does not exist"):
        read_images(DataSettings(str(root)))


# images without labels


def photos(folder: Path, count: int) -> str:
    return str(fill(folder, count))


def unlabelled(source: str, seed: int, **settings: Any) -> Any:
    return load_images(DataSettings(source, **settings), seed=seed, labels_needed=False)


def test_each_image_is_in_one_of_three_sets(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 40)
    splits = unlabelled(source, 3, validation=0.2)
    sets = (splits.train, splits.validation, splits.test)
    assert [len(images) for images in sets] == [24, 8, 8]
    reds = [int(images[index][0, 0, 0]) for images in sets for index in range(len(images))]
    assert sorted(reds) == list(range(40))
    assert splits.class_names == ()
    assert "without labels" in splits.description
    assert splits.train.rows == unlabelled(source, 3, validation=0.2).train.rows
    assert splits.train.rows != unlabelled(source, 4, validation=0.2).train.rows
    assert unlabelled(source, 0, validation=0).validation is None


def test_only_a_folder_with_image_files_in_it_is_unlabelled(tmp_path: Path) -> None:
    assert is_unlabelled(photos(tmp_path / "photos", 1))
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "README.md").write_text("cats")
    for source in (str(tmp_path / "classes"), "digits", "owner/name", ""):
        assert not is_unlabelled(source)


def test_too_few_and_bad_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 4 images: 10 at least"):
        unlabelled(photos(tmp_path / "few", 4), 0)
    source = photos(tmp_path / "bad", 12)
    (tmp_path / "bad" / "cut.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 of 13 files cannot be read as images"):
        unlabelled(source, 0)
    assert len(unlabelled(source, 0, bad_files="skip").skipped) == 1


def test_labels_may_be_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"photos holds images without labels.*one folder a class"):
        load_images(photos(tmp_path / "photos", 20), seed=0)


# $PATCHMERGER_DATA


def test_a_bare_name_is_a_folder_of_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "pets", "cat", "dog", count=20)
    monkeypatch.chdir(fill(tmp_path / "elsewhere", 0))
    with pytest.raises(ValueError, match="'pets' is neither known nor an existing folder"):
        load_images("pets", seed=0)
    monkeypatch.setenv("PATCHMERGER_DATA", str(tmp_path))
    assert load_images("pets", seed=0).class_names == ("cat", "dog")
    assert local_folder("anyone/pets") == tmp_path / "pets"
    assert local_folder("../pets") == Path("../pets")  # a path, not a name
    assert local_folder("..") == Path("..")
    assert local_folder("../nothing/pets") is None
    monkeypatch.chdir(tmp_path)
    assert local_folder("pets") == Path("pets")
    fill(tmp_path / "digits", 1)
    with pytest.warns(UserWarning, match=r"built-in digits are read, not the folder digits: write \./digits"):
        assert len(load_images("digits", seed=0).class_names) == 10
