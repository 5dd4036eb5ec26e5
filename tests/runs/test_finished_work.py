"""What an earlier study has finished is known by what fixes it, copied whole, and said where it is from."""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from patchmerger.runs.files import write_json
from patchmerger.runs.finished_work import FIXED_BY, FinishedWork
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.tensors import read_tensors, write_tensors


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    seed: int = 0


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A study with a finished run and one that is not, each with a model and a checkpoint, and a result in a file."""
    for seed, finished in ((0, True), (1, False)):
        run = RunFolder(tmp_path / f"earlier/plain/seed-{seed}", Settings(seed=seed))
        run.begin()
        (run.path / "checkpoints").mkdir()
        write_json(run.path / "checkpoints/last.json", {})
        write_json(run.path / "model/config.json", {"seed": seed})
        if finished:
            run.finish({"accuracy": 0.9, "folder": str(run.path)})
    write_json(tmp_path / "earlier/model-0/cell.json", {"accuracy": 0.8, "model": 0, FIXED_BY: "all"})
    write_tensors(tmp_path / "earlier/model-0/cell.safetensors", {"predictions": torch.arange(3)})
    return tmp_path / "earlier"


def test_a_finished_run_of_the_same_settings_is_copied(earlier, tmp_path):
    work, run = FinishedWork(earlier, tmp_path / "out"), RunFolder(tmp_path / "out/other/seed-0", Settings())
    assert work.take_run(run)
    assert run.results == {
        "accuracy": 0.9, "folder": str(run.path), "taken_from": str(earlier / "plain/seed-0"),
    }  # fmt: skip
    assert json.loads((run.path / "model/config.json").read_text()) == {"seed": 0}
    assert not (run.path / "checkpoints").exists()
    assert RunFolder(run.path, Settings()).results == run.results


@pytest.mark.parametrize("settings", [Settings(seed=1), Settings(lr=0.2), {"lr": 0.1, "seed": 0}])
def test_no_other_run_is(earlier, tmp_path, settings):
    """An unfinished one, one of other settings, or one of another kind."""
    run = RunFolder(tmp_path / "out/run", settings)
    assert not FinishedWork(earlier, tmp_path / "out").take_run(run)
    assert not run.path.exists()


def test_a_result_in_a_file_comes_with_its_tensors_and_what_changed(earlier, tmp_path):
    work, file = FinishedWork(earlier, tmp_path / "out"), tmp_path / "out/model-1/cell.json"
    assert not work.take_file("something else", file, tensors=True)
    assert work.take_file("all", file, tensors=True, model=1)
    assert json.loads(file.read_text()) == {
        "accuracy": 0.8, "model": 1, FIXED_BY: "all", "taken_from": str(earlier / "model-0"),
    }  # fmt: skip
    assert read_tensors(file.with_suffix(".safetensors"))["predictions"].tolist() == [0, 1, 2]


def test_what_is_taken_over_twice_names_where_it_was_made(earlier, tmp_path):
    first, second = (RunFolder(tmp_path / f"{name}/run", Settings()) for name in ("first", "second"))
    FinishedWork(earlier, tmp_path / "first").take_run(first)
    FinishedWork(tmp_path / "first", tmp_path / "second").take_run(second)
    assert second.results["taken_from"] == str(earlier / "plain/seed-0")


def test_a_copy_that_was_cut_short_is_no_finished_run_and_is_made_again(earlier, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "out/run", Settings())

    def cut_short(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", cut_short)
        with pytest.raises(OSError, match=f"no space is left on the disk.*{run.path}"):
            FinishedWork(earlier, tmp_path / "out").take_run(run)
    assert run.results is None
    assert FinishedWork(earlier, tmp_path / "out").take_run(run)
    assert json.loads((run.path / "model/config.json").read_text()) == {"seed": 0}


def test_the_nearest_run_says_what_differs(earlier, tmp_path):
    work = FinishedWork(earlier, tmp_path / "out")
    work.refuse_if_useless([Settings(lr=0.5), Settings()])
    FinishedWork(None, tmp_path / "out").refuse_if_useless([Settings(lr=0.5)])
    assert work.run_of(Settings()).results["accuracy"] == 0.9
    assert work.run_of(Settings(seed=0.0)) == work.run_of(Settings())  # equal, as when a run resumes
    assert work.run_of(Settings(lr=0.5)) is None
    with pytest.raises(ValueError, match=r"reuse \(.*earlier\).*\(lr: 0.1 there, 0.5 asked for\)"):
        work.refuse_if_useless([Settings(lr=0.5, seed=7), Settings(lr=0.5)])
    with pytest.raises(ValueError, match=r"reuse \(.*earlier\) has no finished run"):
        work.refuse_if_useless([{"lr": 0.1}])


def test_what_is_damaged_is_named_and_left_out(earlier, tmp_path):
    for name, content in (("notes.json", "{"), ("plain/seed-0/results.json", "[1]")):
        (earlier / name).write_text(content)
    with pytest.warns(UserWarning, match="not taken over") as caught:
        work = FinishedWork(earlier, tmp_path / "out")
    said = " ".join(str(one.message) for one in caught)
    assert all(fact in said for fact in ("reuse (", "notes.json is not JSON", "results.json holds no object"))
    assert work.run_of(Settings()) is None
    assert work.take_file("all", tmp_path / "out/cell.json", tensors=True)


def test_a_result_without_its_tensors_is_none(earlier, tmp_path):
    (earlier / "model-0/cell.safetensors").unlink()
    work = FinishedWork(earlier, tmp_path / "out")
    assert not work.take_file("all", tmp_path / "out/cell.json", tensors=True)
    assert work.take_file("all", tmp_path / "out/trial.json", tensors=False)


def test_what_is_copied_from_an_archive_can_be_written_to(earlier, tmp_path):
    for path in sorted(earlier.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    run = RunFolder(tmp_path / "out/run", Settings())
    assert FinishedWork(earlier, tmp_path / "out").take_run(run)
    assert all(path.stat().st_mode & 0o200 for path in (run.path, *run.path.rglob("*")))
    for path in earlier.rglob("*"):
        path.chmod(0o755)


@pytest.mark.parametrize("out", ["earlier", "earlier/plain/seed-0/out"])
def test_no_study_takes_over_what_it_lies_in(earlier, tmp_path, out):
    with pytest.raises(ValueError, match=r"^out \(.*lies in what reuse"):
        FinishedWork(str(earlier), tmp_path / out)
    FinishedWork(earlier, tmp_path / "earlier/another")
