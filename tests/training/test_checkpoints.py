"""Checkpoints: a damaged one, and one of another run, are named with the cure."""

import numpy as np
import pytest
import torch
from PIL import Image

from patchmerger.data import DataSettings
from patchmerger.models.settings import ModelSettings
from patchmerger.runs.run_folder import RunFolder
from patchmerger.training import Recipe, TrainingSettings, fit
from patchmerger.training.trainer import AtomicCheckpointIO, KeepLast, last_checkpoint


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


def pictures(root, seed):
    """Two classes of 24 images each, in split folders, of other pixels for another seed."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_images_that_were_swapped_for_others_are_noticed_when_a_run_is_resumed(tmp_path, monkeypatch):
    recipe = Recipe(
        DataSettings(str(tmp_path / "pets")), merge=None, training=TrainingSettings(2, 16, accelerator="cpu"),
        model=ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1,
            "num_heads": 2}),
    )  # fmt: skip
    pictures(tmp_path / "pets", 0)
    save = KeepLast.on_validation_end

    def killed(self, trainer, module):
        save(self, trainer, module)
        raise RuntimeError("killed")

    monkeypatch.setattr(KeepLast, "on_validation_end", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(KeepLast, "on_validation_end", save)
    pictures(tmp_path / "pets", 1)
    with pytest.raises(ValueError, match=r"images, or their labels, are others .*put them back.*another folder"):
        fit(recipe, out=tmp_path / "run", progress=False)
    pictures(tmp_path / "pets", 0)
    assert fit(recipe, out=tmp_path / "run", progress=False)["images"]["train"] == 32
