"""Folders of image files without labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.image_folders import fill, tree
from patchmerger.data import DataSettings, load_images
from patchmerger.data.folders import is_unlabelled, local_folder

Make = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("own_cache")


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
    assert is_unlabelled(DataSettings(photos(tmp_path / "photos", 1)))
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "README.md").write_text("cats")
    for source in (str(tmp_path / "classes"), "digits", "owner/name", ""):
        assert not is_unlabelled(DataSettings(source))


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
