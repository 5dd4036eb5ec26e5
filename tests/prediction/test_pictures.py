"""The list of images: folders with the folders in them, in one order everywhere, and shares of it."""

import pytest

from patchmerger.prediction import find_pictures


def test_folders_are_searched_with_the_folders_in_them(tmp_path):
    files = ["b.png", "a/2.JPG", "a/1.png", "a/deep/3.webp"]
    for name in [*files, "notes.txt", ".hidden.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures([tmp_path, tmp_path / "notes.txt"])
    assert found.names == tuple(
        str(tmp_path / name) for name in ["a/1.png", "a/2.JPG", "a/deep/3.webp", "b.png", "notes.txt"]
    )
    assert find_pictures(tmp_path).names == found.names[:4]


def test_shares_are_all_images_once_and_of_one_size(tmp_path):
    for number in range(11):
        (tmp_path / f"{number:02}.png").touch()
    shares = [find_pictures(tmp_path, shard=f"{number}/4").names for number in (1, 2, 3, 4)]
    assert sorted(name for share in shares for name in share) == list(find_pictures(tmp_path).names)
    assert {len(share) for share in shares} == {2, 3}
    assert len(find_pictures(tmp_path, shard="12/12")) == 0


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="no image in it or below"):
        find_pictures(tmp_path)
