"""What is read as it is but may not be meant so is said; what cannot be meant is refused with the cure."""

import unicodedata
import warnings
import zipfile
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from patchmerger.data import DataSettings, load_images


def fill(folder: Path, count: int = 20) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Cat", "cat", "dog"), r"the classes 'Cat' and 'cat' differ in case, blanks or the form of accents alone"),
        (("a", "a b", "a  b"), r"the classes 'a  b' and 'a b' differ"),
    ],
)
def test_classes_that_are_hardly_two(tmp_path, names, said):
    for name in names:
        fill(tmp_path / name)
    with pytest.warns(UserWarning, match=said):
        assert len(load_images(DataSettings(str(tmp_path)), seed=0).class_names) == 3


def test_splits_whose_classes_are_written_in_two_ways(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("é", "b"):
            fill(tmp_path / split / unicodedata.normalize(form, name))
    with pytest.raises(ValueError, match=r"'e\\u0301' and '\\xe9' differ in case, blanks or the form of accents alone"):
        load_images(DataSettings(str(tmp_path)), seed=0)


def test_archives_beside_class_folders_are_said(tmp_path):
    for name in ("a", "b", "__MACOSX"):
        fill(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
    with pytest.warns(UserWarning, match=r"not read: more.zip in .*: unpack what belongs to the images"):
        assert load_images(DataSettings(str(tmp_path)), seed=0).class_names == ("a", "b")


@pytest.mark.parametrize(("labels", "said"), [([0, 1, -1], True), ([1, -1, 1], False)])
def test_a_label_that_often_means_none(tmp_path, labels, said):
    pictures = datasets.Image().encode_example(Image.new("RGB", (8, 8)))
    pd.DataFrame({"image": [pictures] * 60, "label": labels * 20}).to_parquet(tmp_path / "train.parquet")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert "-1" in load_images(DataSettings(str(tmp_path)), seed=0).class_names
    assert any("the label -1, which often means none, counts as a class" in str(w.message) for w in seen) == said


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (
            torch.full((40, 3, 8, 8), 255.0),
            r"image 0 of TensorDataset train has floats up to 255, which are not normal",
        ),
        (torch.full((40, 3, 8, 8), torch.nan), r"image 0 of TensorDataset train has values that are not finite"),
    ],
)
def test_floats_that_no_normalisation_gives(images, text):
    with pytest.raises(ValueError, match=text):
        load_images(TensorDataset(images, torch.arange(40) % 2), seed=0)


def test_declared_classes_without_images_say_what_to_do():
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 40, "label": [0, 1] * 20})
    table = table.cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    with pytest.raises(
        ValueError, match=r"no training images of 1 of 3 classes: c; add some, or take these classes away"
    ):
        load_images(table.cast_column("image", datasets.Image()), seed=0)
