"""Files and folders that appear complete or not at all."""

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from patchmerger.runs.files import atomic_file, atomic_folder, check_out, made_once, read_json, write_json
from patchmerger.runs.run_folder import RunFolder


@dataclass
class Usage:
    free: int


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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_the_path_and_the_old_file_stays(tmp_path, monkeypatch, code):
    write_json(tmp_path / "results.json", {"good": 1})

    def full(*args, **kwargs):
        raise OSError(code, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"no space is left .*free some.*results.json'$") as caught:
            write_json(tmp_path / "results.json", {"better": 2})
    assert caught.value.errno == errno.ENOSPC
    assert read_json(tmp_path / "results.json") == {"good": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_errors_of_libraries_on_a_full_disk_are_those_of_the_disk(tmp_path, monkeypatch):
    def fail(path):
        with atomic_file(path):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0")

    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        fail(tmp_path / "last.ckpt")
    monkeypatch.setattr("patchmerger.runs.files.shutil.disk_usage", lambda path: Usage(free=0))
    with pytest.raises(OSError, match=r"no space is left .*last.ckpt"):
        fail(tmp_path / "last.ckpt")


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "model") as folder:
            (folder / content).write_text(content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    with pytest.raises(RuntimeError, match="power"), atomic_folder(tmp_path / "model"):
        raise RuntimeError("power")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def written_twice(file):
    with atomic_file(file, new=True) as partial:
        partial.write_text("ours")
        file.write_text("theirs")


def made_twice(folder):
    with atomic_folder(folder, new=True) as made:
        (made / "ours").touch()
        folder.mkdir()
        (folder / "theirs").touch()


def test_what_another_process_wrote_meanwhile_stays(tmp_path):
    with pytest.raises(FileExistsError, match=r"results.json was written by another process meanwhile"):
        written_twice(tmp_path / "results.json")
    assert (tmp_path / "results.json").read_text() == "theirs"
    with pytest.raises(FileExistsError, match=r"model was written by another process meanwhile"):
        made_twice(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["theirs"]
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "model"}
    write_json(tmp_path / "new.json", {}, new=True)
    assert (tmp_path / "new.json").read_text() == "{}\n"


def test_what_a_file_holds_is_made_once(tmp_path):
    made = [made_once(tmp_path / "new" / "found.json", lambda number=number: {"number": number}) for number in (1, 2)]
    assert made == [{"number": 1}, {"number": 1}]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_what_is_not_there_is_named_before_anything_is_done(overwrite, tmp_path):
    out = tmp_path / "out"
    out.symlink_to("gone")
    broken = r"out \(.*out\) is a link to gone, which is not there: remove the link, or take another name"
    with pytest.raises(FileExistsError, match=broken):
        check_out(out, overwrite=overwrite)
    with pytest.raises(FileExistsError, match=broken):
        RunFolder(out, {"seed": 0})
    (tmp_path / "gone").mkdir()
    RunFolder(out, {"seed": 0}).begin()
    assert (tmp_path / "gone" / "settings.json").exists()
