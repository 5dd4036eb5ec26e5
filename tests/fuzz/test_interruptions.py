"""Runs that are killed, or find the disk full, at random moments: the same command again ends as if nothing had."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3000)]

SEED, ROUNDS = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_ROUNDS", "1"))
SMALL = "{img_size: 8, patch_size: 2, embed_dim: 16, depth: 2, num_heads: 2}"
FIT = [
    "fit", "--data", "digits", "--model.name", "vit_tiny_patch16_224", "--model.args", SMALL, "--merge.num_tokens", "4",
    "--training.epochs", "2", "--training.batch_size", "128", "--training.checkpoint_every", "3",
]  # fmt: skip
ACCELERATE = [
    "accelerate", "--model", "plain", "--data", "digits", "--after", "1", "--num_tokens", "4", "--epochs", "1",
    "--recovery.batch_size", "128", "--recovery.checkpoint_every", "3", "--rounds", "2", "--calibration_images", "64",
]  # fmt: skip
SWEEP = [
    "sweep", "--data", "digits", "--model.name", "vit_tiny_patch16_224", "--model.args", SMALL, "--after", "[1]",
    "--num_tokens", "[4]", "--training.epochs", "1", "--training.batch_size", "256", "--seeds", "1",
    "--rounds", "2",
]  # fmt: skip


def run(arguments: list[str], folder: Path, *, file_bytes: int | None = None, kill_after: float | None = None) -> int:
    """Run the command line in a process of its own; its exit status, −9 where it was killed."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "patchmerger.cli", *arguments], cwd=folder, env=environment, preexec_fn=limit,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return -9
    assert "Traceback" not in errors, errors[-2000:]
    if process.returncode:
        print(errors)
    return process.returncode


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A folder with a trained plain model."""
    folder = tmp_path_factory.mktemp("plain")
    plain_fit = [*FIT[:7], "--merge", "null", *FIT[9:], "--out", "plain"]
    assert run(plain_fit, folder) == 0
    return folder


@pytest.mark.parametrize("kind", ["killed", "full disk"])
@pytest.mark.parametrize(
    ("name", "arguments", "count"), [("fit", FIT, 6), ("accelerate", ACCELERATE, 4), ("sweep", SWEEP, 3)]
)
def test_the_same_command_again(name, arguments, count, kind, plain, tmp_path) -> None:
    shutil.copytree(plain / "plain", tmp_path / "plain")
    began = time.monotonic()
    assert run([*arguments, "--out", "whole"], tmp_path) == 0
    whole, seconds = json.loads((tmp_path / "whole" / "results.json").read_text()), time.monotonic() - began
    rng, interrupted = random.Random(f"{SEED}/{name}/{kind}"), 0
    for number in range(count * ROUNDS):
        out, command = f"broken{number}", [*arguments, "--out", f"broken{number}"]
        for _ in range(2):
            if kind == "killed":
                code = run(command, tmp_path, kill_after=rng.uniform(0.3, 1.1) * seconds)
            else:
                code = run(command, tmp_path, file_bytes=rng.choice((300, 2_000, 20_000, 60_000, 150_000)))
            interrupted += code != 0
            assert code in (0, 2, -9)
        assert run(command, tmp_path) == 0
        results = json.loads((tmp_path / out / "results.json").read_text())
        for key in ("test_metric", "evaluation", "variants"):
            assert _without_times(results.get(key)) == _without_times(whole.get(key))
        assert not list((tmp_path / out).rglob("*.partial")), "half a file was left"
    print(f"\n{name}, {kind}: {count * ROUNDS} runs, {interrupted} interruptions, seed {SEED}")


def _without_times(value: object) -> object:
    """Results without what depends on the clock."""
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if "second" not in k and k not in ("speed", "speedup")}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
