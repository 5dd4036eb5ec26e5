"""A run in its folder: results, resuming after kill -9 to exactly the same weights, refusals."""

import errno
import json
import os
import signal
import subprocess
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from patchmerger.data import Augmentation, DataSettings
from patchmerger.hub import describe, load
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs import files
from patchmerger.training.evaluation import evaluate
from patchmerger.training.fitting import fit, fit_settings
from patchmerger.training.settings import Recipe, TrainingSettings
from patchmerger.training.task import TrainingTask
from processes import Running, run

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")

# Everything that draws random numbers or keeps a state is on: dropout, stochastic depth, mixup, cutmix, averages.
RECIPE = Recipe(
    model=ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4,
        "num_heads": 2, "drop_path_rate": 0.2, "proj_drop_rate": 0.1}),
    merge=MergeSettings(num_tokens=4),
    augmentation=Augmentation(flip=False),
    training=TrainingSettings(epochs=3, batch_size=256, warmup_epochs=1, mixup=0.4, cutmix=1.0, ema=0.9,
        checkpoint_every=2, accelerator="cpu"),
)  # fmt: skip


def train(out: Path, kill_at: int = 0, how: str = "whole") -> None:
    """Train; with ``kill_at`` until that checkpoint is written, or half written."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    saves, replace = 0, os.replace

    def replace_then_die(source: Path, target: Path) -> None:
        nonlocal saves
        saves += str(target).endswith(".ckpt")
        due = saves == kill_at > 0 and str(target).endswith(".ckpt")
        if due and how == "half":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if due:
            os.kill(os.getpid(), signal.SIGINT if how == "ctrl-c" else signal.SIGKILL)

    files.os.replace = replace_then_die
    print("finished", fit(RECIPE, out=out, progress=False)["test_metric"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = run(train, out)
    assert "finished" in done.out, done.err
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


# 1,293 training images make 5 steps an epoch. Checkpoints: steps 2, 4, 5 (after validation), 6, 8, 10, 12, 14, 15.
@pytest.mark.parametrize(
    ("kill_at", "how"),
    [
        pytest.param(2, "whole", id="within"),
        pytest.param(3, "whole", id="edge", marks=pytest.mark.slow),
        pytest.param(5, "half", id="writing", marks=pytest.mark.slow),
        pytest.param(4, "ctrl-c", id="ctrl-c", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_in_the_weights_of_one_that_was_not(uninterrupted, tmp_path, kill_at, how):
    killed = run(train, tmp_path / "run", kill_at, how)
    if how == "ctrl-c":
        assert killed.err.splitlines()[-1] == "KeyboardInterrupt"
    else:
        assert killed.code == -signal.SIGKILL, killed.err
    assert not (tmp_path / "run" / "results.json").exists()
    resumed = run(train, tmp_path / "run")
    assert "finished" in resumed.out, resumed.err
    expected, got = weights(uninterrupted), weights(tmp_path / "run")
    assert expected.keys() == got.keys()
    unequal = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert not unequal
    results, reference = (json.loads((p / "results.json").read_text()) for p in (tmp_path / "run", uninterrupted))
    assert results["test_metric"] == reference["test_metric"]
    assert results["history"] == reference["history"]
    assert [round(row["epoch"]) for row in results["history"]] == [1, 2, 3]


def test_a_finished_run_gives_its_result_again_and_is_left_alone(uninterrupted):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")}
    assert fit(RECIPE, out=uninterrupted, progress=False) == json.loads((uninterrupted / "results.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")} == before


def test_a_run_writes_what_it_says(uninterrupted):
    results = json.loads((uninterrupted / "results.json").read_text())
    assert results["images"]["train"] + results["images"]["validation"] + results["images"]["test"] == 1797
    assert results["mergers"] == [{"after": 2, "num_tokens": 4}]
    assert (results["tokens_in"], results["tokens_out"]) == (17, 5)
    assert results["environment"]["torch"] == torch.__version__
    assert 1 < results["merger"]["blocks.1.merger"]["effective_rank"] <= 4
    assert results["settings"]["training"]["epochs"] == 3
    assert list((uninterrupted / "logs" / "csv").rglob("metrics.csv"))
    saved = describe(uninterrupted / "model")
    assert saved.class_names == tuple("0123456789")
    assert saved.preprocessing.crop_pct == 1.0


def test_the_saved_model_is_the_one_that_was_evaluated(uninterrupted):
    results = json.loads((uninterrupted / "results.json").read_text())
    again = evaluate(uninterrupted, progress=False, accelerator="cpu")
    assert again["value"] == pytest.approx(results["test_metric"])
    assert again["images"] == results["images"]["test"]
    assert sum(again["per_class"].values()) / 10 == pytest.approx(again["value"], abs=0.02)
    assert sorted(k for k in load(uninterrupted / "model").state_dict() if ".merger." in k) == [
        "blocks.1.merger.gain",
        "blocks.1.merger.norm.bias",
        "blocks.1.merger.norm.weight",
        "blocks.1.merger.prior.center",
        "blocks.1.merger.prior.log_width",
        "blocks.1.merger.weight",
    ]


def test_two_processes_on_one_folder_end_with_the_same_results(uninterrupted, tmp_path):
    both = [Running(train, tmp_path / "run") for _ in range(2)]
    ended = [process.wait() for process in both]
    metric = json.loads((uninterrupted / "results.json").read_text())["test_metric"]
    assert [process.out for process in ended] == [f"finished {metric}\n"] * 2, ended
    assert "waiting: another process is at the run" in "".join(process.err for process in ended)


def quick(out, **changes):
    recipe = {
        "model": ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2,
            "num_heads": 2}),
        "merge": MergeSettings(num_tokens=4),
        "training": TrainingSettings(epochs=1, batch_size=256, accelerator="cpu"),
    }  # fmt: skip
    return fit(Recipe(**{**recipe, **changes}), out=out, progress=False)


def test_one_option_of_the_augmentation_does_not_turn_the_others_on():
    recipe = Recipe(augmentation=Augmentation(erasing=0.5))
    assert fit_settings(recipe, seed=0).augmentation == Augmentation("none", flip=False, erasing=0.5)


def test_plain_models_without_a_validation_split_train_too(tmp_path):
    results = quick(merge=None, data=DataSettings(validation=0), out=tmp_path / "run")
    assert results["mergers"] == []
    assert results["merger"] == {}
    assert [(row["epoch"], row["val_metric"]) for row in results["history"]] == [(1, None)]
    assert results["images"]["validation"] == 0
    assert results["predicted_speedup"] == 1


def test_without_validation_a_run_goes_on_after_the_last_whole_epoch(tmp_path, monkeypatch):
    settings = {"data": DataSettings(validation=0), "training": TrainingSettings(3, batch_size=256, accelerator="cpu")}
    expected, steps, step = quick(tmp_path / "whole", **settings), [], TrainingTask.training_step

    def killed(self, batch, index):
        steps.append(index)
        if steps == [*range(14)]:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(TrainingTask, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        quick(tmp_path / "cut", **settings)
    results = quick(tmp_path / "cut", **settings)
    assert steps == [*range(14), *range(10, 15)]  # 5 steps an epoch
    assert results["history"] == expected["history"]
    assert [round(row["epoch"]) for row in results["history"]] == [1, 2, 3]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "cut")[name], tensor)


def test_the_loss_of_the_history_is_the_mean_over_the_batches_of_its_epoch(tmp_path, monkeypatch):
    losses, step = [], TrainingTask.training_step

    def noted(*arguments):
        loss = step(*arguments)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(TrainingTask, "training_step", noted)
    history = quick(training=TrainingSettings(epochs=2, batch_size=256, accelerator="cpu"), out=tmp_path / "run")[
        "history"
    ]
    assert [row["train_loss"] for row in history] == [
        pytest.approx(np.mean(losses[:5])),
        pytest.approx(np.mean(losses[5:])),
    ]


@pytest.mark.parametrize("write", [2, 3])  # the checkpoint after the first epoch; the predictions
def test_a_full_disk_is_named_and_with_room_the_same_command_goes_on(tmp_path, monkeypatch, write):
    calls, fsync = [], os.fsync

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == write:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    with monkeypatch.context() as patch:
        patch.setattr("patchmerger.runs.files.os.fsync", full)
        with pytest.raises(OSError, match=rf"no space is left on the disk: free some.*{tmp_path.name}/run/") as caught:
            quick(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert quick(tmp_path / "run")["test_metric"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kib", [4, 32, 96, 160])  # the whole run takes some 200
def test_a_disk_that_is_too_small_is_named_and_a_larger_one_goes_on(tmp_path, kib):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        with pytest.raises(OSError, match=rf"no space is left on the disk.*{disk}"):
            quick(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert quick(disk / "run")["test_metric"] > 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_weights_and_results_are_readable_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        quick(tmp_path / "run")
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert path.stat().st_mode & 0o777 == 0o644, path


def test_images_of_several_labels_are_learned(tmp_path):
    def tags(shade):  # which thirds are bright: none, one or several of them
        return [name for bit, name in enumerate(("top", "middle", "bottom")) if shade >> bit & 1]

    def picture(shade):
        pixels = np.zeros((8, 8, 3), np.uint8)
        for bit in range(3):
            pixels[3 * bit : 3 * bit + 2] = 200 * (shade >> bit & 1)
        return Image.fromarray(pixels)

    rows = [row % 8 for row in range(160)]
    table = datasets.Dataset.from_dict(
        {"image": [picture(row) for row in rows], "tags": [tags(row) for row in rows]},
        features=datasets.Features({"image": datasets.Image(), "tags": datasets.List(datasets.Value("string"))}),
    )
    datasets.DatasetDict(train=table, test=table.select(range(40))).save_to_disk(str(tmp_path / "table"))
    results = quick(
        data=DataSettings(str(tmp_path / "table"), label="tags", validation=0),
        augmentation=Augmentation("none", flip=False), out=tmp_path / "run",
        training=TrainingSettings(epochs=25, batch_size=32, lr=1e-2, loss="sigmoid", accelerator="cpu"),
    )  # fmt: skip
    assert results["metric"] == "mAP"
    assert describe(tmp_path / "run" / "model").multi_label
    assert results["test_metric"] > 0.9  # by chance 0.5
    assert results["classes"] == 3
    assert not (tmp_path / "run" / "test_predictions.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": DataSettings("no/such/place/at/all")}, r"no/such/place/at/all"),
        ({"model": ModelSettings("vit_tinny_patch16_224")}, r"'vit_tinny_patch16_224'.*did you mean vit_tiny"),
        ({"model": ModelSettings("vit_tiny_patch16_224", {"depht": 3})}, r"model.args.*do not fit.*depht"),
        ({"merge": MergeSettings(after=9)}, r"after \(9\) must be a block from 1 to 1"),
    ],
)
def test_bad_settings_are_refused_before_training(tmp_path, changes, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        quick(**changes, out=tmp_path / "run")
    assert not (tmp_path / "run" / "logs").exists()


def test_other_classes_than_the_models_are_refused(uninterrupted, tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match=r"has the classes cat, dog, but model .* was trained on 0, 1, 2"):
        evaluate(uninterrupted, data=DataSettings(str(tmp_path)), progress=False, accelerator="cpu")
