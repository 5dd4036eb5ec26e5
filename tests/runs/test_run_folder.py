"""A run's folder: resumed with the same settings, refused with others, never overwritten."""

import json
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from patchmerger.runs.files import write_json
from patchmerger.runs.run_folder import LOCK_FILE, RunFolder, default_folder, fingerprint, flatten, read_settings


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    place: Path | None = None


@dataclass(frozen=True)
class Other:
    lr: float = 0.1
    place: Path | None = None


def test_a_new_folder_records_its_settings(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run", {"training": Settings(), "seed": 3})
    assert not (tmp_path / "a").exists()
    folder.begin()
    recorded = json.loads((tmp_path / "a" / "run" / "settings.json").read_text())
    assert recorded == {"type": "dict", "settings": {"training": {"lr": 0.1, "place": None}, "seed": 3}}
    assert folder.results is None


def test_settings_are_read_back_as_their_class(tmp_path):
    settings = Settings(lr=1, place=Path("x/y"))
    RunFolder(tmp_path, settings).begin()
    assert read_settings(tmp_path, Settings) == settings
    with pytest.raises(ValueError, match=r"a run with Settings, not with Other"):
        read_settings(tmp_path, Other)
    with pytest.raises(ValueError, match=r"type: 'Settings' there, 'Other' asked for"):
        RunFolder(tmp_path, Other(lr=1, place=Path("x/y")))


def test_the_same_settings_find_the_results_again(tmp_path):
    folder = RunFolder(tmp_path / "run", {"s": Settings()})
    folder.begin()
    assert folder.finish({"accuracy": 0.5, "at": Path("x")}) == {"accuracy": 0.5, "at": "x"}
    assert RunFolder(tmp_path / "run", {"s": Settings()}).results == {"accuracy": 0.5, "at": "x"}


def test_the_results_of_a_run_that_was_moved_name_its_folder_where_it_is(tmp_path):
    folder = RunFolder(tmp_path / "run", {"s": Settings()})
    folder.begin()
    folder.finish({"accuracy": 0.5, "folder": str(folder.path)})
    moved = folder.path.rename(tmp_path / "moved")
    found = RunFolder(moved, {"s": Settings()})
    assert found.results == {"accuracy": 0.5, "folder": str(moved)}
    with found.exclusive() as results:
        assert results == found.results


def test_other_settings_are_refused_and_named(tmp_path):
    RunFolder(tmp_path / "run", {"s": Settings(), "seed": 0}).begin()
    with pytest.raises(ValueError, match=r"belongs to a run with other settings \(s.lr: 0.1 there, 0.2 asked for\)"):
        RunFolder(tmp_path / "run", {"s": Settings(lr=0.2), "seed": 0})
    assert read_settings(tmp_path / "run", dict)["s"]["lr"] == 0.1
    message = r"other settings \(null in one of them, not there in the other: extra\)"
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path / "run", {"s": Settings(), "seed": 0, "extra": None})


def test_settings_that_differ_in_kind_are_named_too(tmp_path):
    RunFolder(tmp_path / "run", {"merge": {"num_tokens": 8}}).begin()
    with pytest.raises(ValueError, match=r"merge: None there.*merge.num_tokens|merge.num_tokens: 8 there"):
        RunFolder(tmp_path / "run", {"merge": None})


@pytest.mark.parametrize("content", ["{", "[]", '{"seed": 0}', "\x00", '{"type": "dict", "settings": {}, "more": 1}'])
def test_damaged_or_foreign_settings_are_named_with_the_cure(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json .*name another folder, or move .* away"):
        RunFolder(tmp_path, {"seed": 0})


def test_damaged_results_are_named_with_the_cure(tmp_path):
    folder = RunFolder(tmp_path, {"seed": 0})
    folder.begin()
    (tmp_path / "results.json").write_text('{"accuracy": 0.')
    with pytest.raises(ValueError, match=r"results.json is not JSON.*remove it"):
        _ = folder.results


def test_a_folder_that_another_run_began_meanwhile_is_refused(tmp_path):
    first, second = (RunFolder(tmp_path / "run", {"seed": seed}) for seed in (0, 1))
    first.begin()
    with pytest.raises(ValueError, match=r"seed: 0 there, 1 asked for"):
        second.begin()


RUN = """
    import sys, time
    from pathlib import Path
    from patchmerger.runs.run_folder import RunFolder

    folder = RunFolder(Path(sys.argv[1]), {"seed": 0})
    folder.begin()
    with folder.exclusive() as finished:
        if finished is None:
            print("works", flush=True)
            time.sleep(float(sys.argv[2]))
            folder.finish({"by": sys.argv[3]})
    print(folder.results["by"])
"""


def start(folder: Path, seconds: float, name: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", textwrap.dedent(RUN), str(folder), str(seconds), name]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_the_second_waits_and_has_the_results_of_the_first(tmp_path):
    first = start(tmp_path / "run", 60, "first")
    assert first.stdout.readline() == "works\n"
    second, third = (start(tmp_path / "run", 0.5, name) for name in ("second", "third"))
    for process in (second, third):
        assert re.match(r"waiting: another process .*run$", process.stderr.readline())
    first.kill()  # its lock goes with it
    first.communicate()
    outputs = sorted(process.communicate(timeout=60)[0] for process in (second, third))
    assert (second.returncode, third.returncode) == (0, 0)
    (name,) = {output.split()[-1] for output in outputs}  # one of them did the work, and both have its results
    assert outputs == sorted([f"{name}\n", f"works\n{name}\n"])


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.begin()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.0123abcd.partial").write_text("half")
    (tmp_path / ".model.0123abcd.partial").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("whole")
    with folder.exclusive():
        assert sorted(path.name for path in tmp_path.rglob("*")) == [
            ".lock",
            "checkpoints",
            "last.ckpt",
            "settings.json",
        ]


def test_what_a_process_writes_as_it_begins_is_not_taken_for_that_of_a_killed_one(tmp_path, monkeypatch):
    def write(path, content):
        with pytest.raises(Timeout, match="lock"):  # as who would remove it does
            FileLock(tmp_path / "run" / LOCK_FILE).acquire(timeout=0)
        write_json(path, content)

    monkeypatch.setattr("patchmerger.runs.run_folder.write_json", write)
    RunFolder(tmp_path / "run", {"seed": 1}).begin()
    assert read_settings(tmp_path / "run", dict) == {"seed": 1}


def test_a_folder_in_which_another_process_begins_or_was_killed_is_taken(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    (tmp_path / ".settings.json.0123abcd.partial").touch()
    folder = RunFolder(tmp_path, {"seed": 1})
    folder.begin()
    with folder.exclusive():
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE, "settings.json"]


def test_a_process_that_waits_to_begin_goes_on_with_what_another_one_began(tmp_path):
    with FileLock(tmp_path / LOCK_FILE):
        timer = threading.Timer(
            0.2, write_json, [tmp_path / "settings.json", {"type": "dict", "settings": {"seed": 2}}]
        )
        timer.start()
        with pytest.raises(ValueError, match=r"other settings \(seed: 2 there, 1 asked for\)"):
            RunFolder(tmp_path, {"seed": 1}).begin()
        timer.join()


def test_the_other_processes_of_a_training_on_several_devices_do_not_wait(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, {})
    folder.begin()
    with folder.exclusive():
        monkeypatch.setenv("LOCAL_RANK", "1")
        with folder.exclusive() as finished:
            assert finished is None


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(ValueError, match=r"exists and is not the folder of a run"):
        RunFolder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"exists and is not the folder of a run"):
        RunFolder(tmp_path / "run", {})


def test_an_empty_folder_is_taken(tmp_path):
    RunFolder(tmp_path, {"seed": 1}).begin()
    assert (tmp_path / "settings.json").exists()


def test_default_folders_differ_with_the_settings():
    a, b = (default_folder("fit", "some/where/My Data!", {"seed": seed}) for seed in (0, 1))
    assert a != b
    assert a.parent == Path("runs")
    assert a.name.startswith("fit-my-data-")
    assert a == default_folder("fit", "some/where/My Data!", {"seed": 0})


def test_the_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": [2, 3], "a": 1})


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": [2], "e": {}}) == {"a.b.c": 1, "d": [2], "e": {}}
