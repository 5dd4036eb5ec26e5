"""Files and folders that appear complete or not at all."""

import json
import os
from pathlib import Path

import pytest

from patchmerger.runs.files import atomic_file, atomic_folder, read_json, write_json


def write_half(path: Path) -> None:
    with atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError("power")


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "results.json", {"good": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "results.json", {"bad": object()})
    assert read_json(tmp_path / "results.json") == {"good": 1}


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match=r"results.json is not JSON .* damaged or cut short"):
        read_json(tmp_path / "results.json")


def test_a_file_that_fails_leaves_nothing_and_one_that_does_not_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with pytest.raises(RuntimeError, match="power"):
            write_half(tmp_path / "a")
        assert list(tmp_path.iterdir()) == []
        with atomic_file(tmp_path / "a") as partial:
            partial.write_text("whole")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    with pytest.raises(RuntimeError, match="power"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("power")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
