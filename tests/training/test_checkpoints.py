"""Checkpoints: a damaged one, and one of another run, are named with the cure."""

import pytest
import torch

from patchmerger.runs.run_folder import RunFolder
from patchmerger.training.trainer import AtomicCheckpointIO, last_checkpoint


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    folder.begin()
    (folder.path / "checkpoints").mkdir()
    return folder


def test_there_may_be_no_checkpoint_yet(folder):
    assert last_checkpoint(folder) is None


def test_a_checkpoint_of_the_run_is_found_and_one_of_another_is_refused(folder):
    path = folder.path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"patchmerger_run": folder.fingerprint, "weight": torch.ones(3)}, path)
    assert last_checkpoint(folder) == path
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    for foreign in ({"patchmerger_run": "another"}, {"state_dict": {}}, [1, 2]):
        torch.save(foreign, path)
        with pytest.raises(ValueError, match=r"last.ckpt was not written by this run: remove it"):
            last_checkpoint(folder)


@pytest.mark.parametrize("damage", ["empty", "text", "cut short", "pickle"])
def test_a_damaged_checkpoint_is_named(folder, damage):
    path = folder.path / "checkpoints" / "last.ckpt"
    torch.save({"patchmerger_run": folder.fingerprint, "weight": torch.ones(300)}, path)
    content = path.read_bytes()
    damaged = {"empty": b"", "text": b"no checkpoint", "cut short": content[:-200], "pickle": b"\x80\x02}q\x00."}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"last.ckpt .*: remove it") as caught:
        last_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_write_that_torch_cannot_finish_is_named_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, path)

    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 62985 vs 62928\nmore")

    monkeypatch.setattr(torch, "save", fail)  # as where a quota or a limit on the size of files is reached
    with pytest.raises(OSError, match=r"last\.ckpt cannot be written: .*unexpected pos"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(3)}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["weight"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
