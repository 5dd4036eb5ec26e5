"""The studies that are ready and wait for a GPU, worked off in the order of their worth: ``python -m tools.gpu_queue``.

A call ends by itself within its minutes; the next one resumes, on the same machine or on a bare one that is given the
archive of the last. Studies share their trainings between several processes, so that one GPU is kept busy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.job_queue import ARCHIVE_FILE, STATE_FILE, Job, Queue, resume

_VIT = "{img_size: 8, patch_size: 2, embed_dim: 16, depth: 8, num_heads: 2}"


def _brief(settings: str) -> str:
    """Options that make a training a matter of seconds on a CPU."""
    return (
        f"--{settings}.epochs 1 --{settings}.warmup_epochs 0 --{settings}.batch_size 512 --{settings}.mixup 0 "
        f"--{settings}.cutmix 0 --{settings}.precision 32-true --{settings}.compile false"
    )


_DIGITS = f"--data.source digits --model.args '{_VIT}' {_brief('training')} --seeds 1 --rounds 1"


def _study(command: str, name: str, small: str, **options: Any) -> Job:
    return Job(name, f"{command} --config configs/{name}.yaml --progress false", small, processes=4, **options)


def _accelerate(query_init: str, speedup: float) -> Job:
    return Job(
        f"vit-small-224-{query_init}-{speedup:g}",
        f"accelerate --model {{root}}/vit-small-224 --data.source uoft-cs/cifar10 --speedup {speedup:g} "
        f"--query_init {query_init} --epochs 3 --recovery.scope rear-then-all --progress false",
        "--data.source digits --speedup 1.1 --epochs 0.1 --rounds 1 --calibration_images 32 "
        "--recovery.precision 32-true",
        ("--recovery.accelerator",),
        group="accelerate",
    )


_SEEDS = (0, 1, 2)
_METHODS = (
    "located, average, tome, dpcknn, evit, topk, random-drop, ats, atc, kmedoids, sit, tokenlearner, dynamicvit, "
    "sinkhorn, fixed-l1, fixed-l2, fixed-linf"
)


def _plain(seed: int) -> Job:
    return Job(
        f"vit-small-cifar10-{seed}",
        "fit --init {pretrained} --merge null --data.source uoft-cs/cifar10 --image_size 98 --training.epochs 5 "
        "--training.batch_size 128 --training.lr 3e-4 --training.layer_decay 0.75 --training.label_smoothing 0.1 "
        f"--training.warmup_epochs 0.5 --training.precision bf16-mixed --seed {seed} --progress false",
        f"--init null --data.source digits --image_size null --model.name vit_tiny_patch16_224 --model.args '{_VIT}' "
        f"--training.layer_decay null {_brief('training')}",
        group="plain",
        keeps="model",
    )


def _in_trained_models(name: str, options: str, small: str) -> Job:
    models = ", ".join(f"{{root}}/vit-small-cifar10-{seed}" for seed in _SEEDS)
    return Job(
        name,
        f"accelerate-study --config configs/{name}.yaml --models '[{models}]' {options} --progress false",
        f"--methods '[located, average]' --epochs '[0, 0.1]' --rounds 1 --speed_batch_size 2 --calibration_images 32 "
        f"--recovery.precision 32-true --recovery.batch_size 64 --recovery.views 1 {small}",
        ("--recovery.accelerator",),
        processes=4,
    )


QUEUE = (
    Job(
        "bench-gpu-bf16",
        "bench {benched} --num_tokens 8 --batch_size '[1, 64, 256]' --precision bf16 --mode both "
        "--compile '[false, true]' --overwrite true",  # an interrupted one begins anew
        "--batch_size 1 --image_size 32 --num_tokens 2 --precision float32 --compile false --mode inference --rounds 1 "
        "--warmup 1",
        ("--device",),
        suffix=".json",
    ),
    *(_plain(seed) for seed in _SEEDS),
    _in_trained_models(
        "accelerate-all-vit-small-cifar10", "--methods '[located, average, dpcknn, random]'", "--speedups '[1.1]'"
    ),
    _in_trained_models("reducers-vit-small-cifar10", f"--methods '[{_METHODS}, regions, cut]'", "--speedups '[1.1]'"),
    _in_trained_models("reducers-keep-rates-vit-small-cifar10", f"--methods '[{_METHODS}]'", "--keep_rates '[0.5]'"),
    Job(
        "vit-small-224",
        "fit --init {pretrained} --merge null --data.source uoft-cs/cifar10 --image_size 224 --training.epochs 10 "
        "--training.batch_size 256 --training.lr 3e-4 --training.layer_decay 0.75 --training.precision bf16-mixed "
        "--training.compile true --progress false",
        f"--init null --data.source digits --image_size null --model.name vit_tiny_patch16_224 --model.args '{_VIT}' "
        f"--training.layer_decay null {_brief('training')}",
        keeps="model",
    ),
    *(_accelerate(query_init, speedup) for speedup in (1.6, 1.4, 2.0) for query_init in ("best", "random")),
    _study("compare", "cifar10", f"{_DIGITS} --variants '[plain, located]'"),
    _study(
        "transfer",
        "transfer-tiny-imagenet",
        f"{_DIGITS} --variants '[merged]' --downstream.source digits {_brief('finetuning.training')} --shots '[1]' "
        "--draws 2",
        device=("--training.accelerator", "--finetuning.training.accelerator"),
    ),
    Job(
        "transfer-vit-small",
        "transfer --config configs/transfer-vit-small.yaml --init {pretrained} --image_size 98 --training.epochs 10 "
        "--training.batch_size 256 --finetuning.training.epochs 5 --finetuning.training.batch_size 256 "
        "--downstream.source uoft-cs/cifar10 --progress false",
        f"--init null --image_size null --model.name vit_tiny_patch16_224 {_DIGITS} --training.layer_decay null "
        f"--merge.after null --variants '[located]' --downstream.source digits {_brief('finetuning.training')} "
        "--shots '[1]' --draws 2",
        ("--training.accelerator", "--finetuning.training.accelerator"),
        processes=4,
    ),
    _study(
        "sweep",
        "sweep-cifar10",
        f"{_DIGITS} --after '[2]' --num_tokens '[4]' --further '{{two: {{num_tokens: [8, 2], after: [2, 4]}}}}'",
    ),
    _study("compare", "cifar10-width-384", f"{_DIGITS} --variants '[plain, average]'"),
)
"""In the order of their worth: what is quick and certain first."""

SMALL_NAMES = {"pretrained": "null", "benched": "vit_tiny_patch16_224"}


def names() -> dict[str, str]:
    """What ``{pretrained}``, a trained ViT-S/14, and ``{benched}``, the models whose speed is measured, stand for."""
    return {
        "pretrained": f"{os.environ.get('PATCHMERGER_DATA', '')}/models/vit-small-patch14",
        "benched": "vit_base_patch16_224 vit_large_patch16_224 vit_huge_patch14_224",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Work the queue; the exit status is 0 where all jobs are done."""
    parser = argparse.ArgumentParser(prog="gpu_queue", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"), help="for results")
    parser.add_argument("--root", type=Path, default=Path("runs/gpu-queue"), help="where runs are kept")
    parser.add_argument("--minutes", type=float, default=8.5, help="after these the call ends; the next one resumes")
    parser.add_argument("--processes", type=int, default=4, help="how many run at once")
    parser.add_argument("--accelerator", help="gpu, cpu, …; by default what each command chooses")
    parser.add_argument("--small", action="store_true", help="try the queue, with budgets of seconds")
    parser.add_argument(
        "--resume", type=Path, help=f"{ARCHIVE_FILE} of an earlier call, for a machine without its runs"
    )
    options = parser.parse_args(arguments)
    if options.resume is not None and not (options.root / STATE_FILE).exists():
        resume(options.resume, options.root)
    queue = Queue(QUEUE, options.root)
    try:
        queue.work(
            60 * options.minutes, accelerator=options.accelerator, small=options.small,
            names=SMALL_NAMES if options.small else names(), processes=options.processes,
        )  # fmt: skip
    finally:
        queue.hand_over(options.out)
    for name, known in queue.state.items():
        status = "done" if known["done"] else f"failed {known['failures']} times" if known["failures"] else "to do"
        print(f"{name:32} {status:16} {known['seconds']:8.0f} s")
    return 0 if queue.done else 1


if __name__ == "__main__":
    raise SystemExit(main())
