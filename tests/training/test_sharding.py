"""`patchmerger fit` in two processes, whole weights on each (DDP) or shared out (FSDP2), is the run of one process."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import processes
from patchmerger.cli import main
from patchmerger.training.settings import TrainingSettings

SCRIPT = """
    import os, signal, sys
    from patchmerger.runs import files
    from patchmerger.cli import main

    saves, replace = 0, os.replace

    def replace_then_die(source, target):
        global saves
        replace(source, target)
        saves += str(target).endswith(".ckpt")
        if saves == int(sys.argv[1]) > 0:
            os.killpg(0, signal.SIGKILL)

    if __name__ == "__main__":
        files.os.replace = replace_then_die
        sys.exit(main(sys.argv[2:]))
"""
# 1,293 training images make 5 steps an epoch. Checkpoints: steps 2, 4, 5 (after validation), 6, 8 and 10.
OPTIONS = """
    --model.name vit_tiny_patch16_224 --merge.num_tokens 4
    --model.args {img_size:\\ 8,patch_size:\\ 2,embed_dim:\\ 16,depth:\\ 2,num_heads:\\ 2}
    --training.epochs 2 --training.accelerator cpu --training.checkpoint_every 2 --progress false
"""


def options_of(out: Path, processes: int, **training) -> list[str]:
    """`patchmerger fit` with the same 256 images in a batch of all processes."""
    options = {"devices": processes, "batch_size": 256 // processes, **training}
    given = [word for name, value in options.items() for word in (f"--training.{name}", str(value))]
    return ["fit", *shlex.split(OPTIONS), *given, "--out", str(out)]


def run(out: Path, *, kill_at: int = 0, **training) -> subprocess.CompletedProcess:
    """In two processes, of which Lightning starts the second by the same command line."""
    script = out.parent / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(kill_at), *options_of(out, 2, **training)],
        capture_output=True, text=True, check=False, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip


def run_alone(out: Path, **training) -> Path:
    ended = processes.run(main, options_of(out, 1, **training))
    assert (out / "results.json").exists(), ended
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_alone(tmp_path_factory.mktemp("one") / "run")


def assert_equal_runs(out: Path, expected: Path) -> None:
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (expected, out))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        # The softmax passes over parts of these: their gradient is rounding errors, of which AdamW makes steps.
        rounding = name.endswith(("qkv.bias", "merger.norm.bias"))
        assert torch.allclose(others[name], weight, rtol=0, atol=1e-4 if rounding else 1e-5), name
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (out, expected))
    assert ours["test_metric"] == pytest.approx(theirs["test_metric"], abs=0.006)  # 2 of 360 images
    assert ours["images"] == theirs["images"]
    assert ours["flops"] == theirs["flops"]
    for ours_then, theirs_then in zip(ours["history"], theirs["history"], strict=True):
        assert ours_then["val_metric"] == pytest.approx(theirs_then["val_metric"], abs=0.02)
    targets = [load_file(folder / "test_predictions.safetensors")["targets"] for folder in (out, expected)]
    assert torch.equal(*targets)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_evaluate_and_save_as_one(one, tmp_path, strategy):
    done = run(tmp_path / "run", strategy=strategy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1  # said by one process only
    assert_equal_runs(tmp_path / "run", one)


@pytest.mark.slow
def test_a_sharded_run_is_resumed_and_averages_its_weights(tmp_path):
    killed = run(tmp_path / "run", strategy="fsdp", ema=0.5, kill_at=4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["model.blocks.0.merger.weight"].shape == (
        4 * 4,
        16,
    )  # four heads, whole, in one file
    resumed = run(tmp_path / "run", strategy="fsdp", ema=0.5)
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_runs(tmp_path / "run", run_alone(tmp_path / "alone", ema=0.5))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"strategy": "deepspeed_stage_3"}, r"training.strategy \('deepspeed_stage_3'\) is not supported: 'fsdp'"),
        ({"strategy": "fsdp", "precision": "bf16-true"}, r"training.precision \('bf16-true'\) with strategy 'fsdp'"),
        ({"strategy": "fsdp", "compile": True}, r"training.compile is not supported with training.strategy 'fsdp'"),
    ],
)
def test_what_sharding_cannot_do_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        TrainingSettings(**settings).check(multi_label=False)
