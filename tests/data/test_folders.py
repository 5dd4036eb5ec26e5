"""Folders of image files: with class folders, and without labels."""

import pytest
from PIL import Image

from patchmerger.data import DataSettings, load_images
from patchmerger.data.folders import is_unlabelled


def photos(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png")
    return str(folder)


def unlabelled(settings, seed):
    return load_images(settings, seed=seed, labels_needed=False)


def test_each_image_is_in_one_of_three_sets(tmp_path):
    splits = unlabelled(DataSettings(photos(tmp_path / "photos", 40), validation=0.2), seed=3)
    sets = (splits.train, splits.validation, splits.test)
    assert [len(images) for images in sets] == [24, 8, 8]
    reds = [int(images[index][0, 0, 0]) for images in sets for index in range(len(images))]
    assert sorted(reds) == list(range(40))
    assert splits.class_names == ()
    assert "without labels" in splits.description
    assert splits.train.rows == unlabelled(DataSettings(str(tmp_path / "photos"), validation=0.2), seed=3).train.rows
    assert splits.train.rows != unlabelled(DataSettings(str(tmp_path / "photos"), validation=0.2), seed=4).train.rows


def test_only_a_folder_with_image_files_in_it_is_unlabelled(tmp_path):
    assert is_unlabelled(photos(tmp_path / "photos", 1))
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "README.md").write_text("cats")
    for source in (str(tmp_path / "classes"), "digits", "owner/name", ""):
        assert not is_unlabelled(source)


def test_no_validation_set_where_none_is_wanted(tmp_path):
    assert unlabelled(DataSettings(photos(tmp_path / "photos", 20), validation=0), seed=0).validation is None


def test_too_few_and_bad_images_are_told(tmp_path):
    with pytest.raises(ValueError, match="has 4 images: 10 at least"):
        unlabelled(DataSettings(photos(tmp_path / "few", 4)), seed=0)
    source = photos(tmp_path / "bad", 12)
    (tmp_path / "bad" / "cut.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 of 13 files cannot be read as images"):
        unlabelled(DataSettings(source), seed=0)
    assert len(unlabelled(DataSettings(source, bad_files="skip"), seed=0).skipped) == 1


def test_labels_may_be_needed(tmp_path):
    with pytest.raises(ValueError, match=r"photos holds images without labels.*one folder a class"):
        load_images(DataSettings(photos(tmp_path / "photos", 20)), seed=0)
