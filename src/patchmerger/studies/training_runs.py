"""What the studies share: one training run in its folder, the paired difference of two models, measured speed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.data import ImageDataset, ImageSplits, split_images
from patchmerger.runs.files import read_json
from patchmerger.runs.finished_work import TAKEN_FROM, FinishedWork
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import PairedDifference, mean_sd, over_images, over_seeds
from patchmerger.runs.tensors import read_tensors
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings
from patchmerger.studies.settings import StudySettings
from patchmerger.training.finetuning import content_of
from patchmerger.training.fitting import MODEL_FOLDER, PREDICTIONS_FILE, fit_images, fit_settings
from patchmerger.training.settings import Recipe, TrainingSettings

WORK = ".work"
"""Where processes of one study keep the locks of what they share."""

GROWING = (
    "seeds", "rounds", "variants", "shots", "after", "num_tokens", "norm", "scale", "logit_std", "further",
)  # fmt: skip
"""The settings by which a study grows: what is finished stays what it is."""

DESCRIPTION = ("flops", "params", "tokens_in", "tokens_out", "mergers", "predicted_speedup")


@dataclass(frozen=True)
class Run:
    """The folder of a finished run, and the content of its ``results.json``."""

    path: Path
    results: dict[str, Any]


Runs = Mapping[int, Run]
"""Finished runs of one model, by seed."""


def study_folder(settings: StudySettings, out: Path | None, command: str) -> RunFolder:
    """The folder of a study, which knows what its models start from by its content."""
    fixed = settings if settings.init is None else replace(settings, init=content_of(settings.init))
    return RunFolder(out or default_folder(command, settings.data.source, fixed), fixed, growing=GROWING)


def read_runs(path: Path, seeds: int, stage: str = "") -> dict[int, Run]:
    """The finished runs of one model: PATH/seed-N, or a stage of them, PATH/seed-N/STAGE."""
    folders = {seed: path / f"seed-{seed}" / stage for seed in range(seeds)}
    return {seed: Run(folder, read_json(folder / RESULTS_FILE)) for seed, folder in folders.items()}


def train_run(
    images: ImageSplits,
    recipe: Recipe,
    path: Path,
    *,
    seed: int,
    reused: FinishedWork,
    name: str | None = None,
    progress: bool = True,
) -> None:
    """Train one model with one seed, unless that is done, here or in what is ``reused``; resumes an interrupted run.

    ``images`` are those of the seed. The ``name`` to report by is that of the folder above by default.
    """
    settings = fit_settings(recipe, seed)
    folder = RunFolder(path, settings)
    if folder.results is not None:
        return
    if (known := reused.run_of(settings)) is not None:
        check_finished(known.path, known.results, images)
    title = f"{name or path.parent.name}, seed {seed}"
    if reused.take_run(folder):
        if progress:
            print(f"{title}: taken over from {reused.folder}", file=sys.stderr)
        return
    if progress:
        print(f"{title}: training", file=sys.stderr)
    if recipe.training.compile:
        torch.compiler.reset()  # else some eight models of one class in a process reach torch's limit on recompilation
    results = fit_images(images, recipe, seed=seed, folder=folder, progress=progress)
    if progress:
        value, seconds = 100 * results["test_metric"], results["seconds"]
        print(f"{title}: {results['metric']} {value:.2f}% after {seconds:.0f} s", file=sys.stderr)


def check_finished(path: Path, results: Mapping[str, Any], images: ImageSplits) -> None:
    """Refuse a finished run, of the study itself or of one that is reused, on other images, or one that lacks a part.

    Raises:
        ValueError: Its images are others in number, labels, or in how they are split; or its model is gone.
    """
    theirs = results["images"]
    same_labels = theirs.get("fingerprint") == images.fingerprint
    if not same_labels or theirs.get("content") not in (None, images.content):  # which older results do not have
        what = "labels of its images" if theirs["description"] == images.description else "images"
        what = "images of the same labels" if same_labels else what
        raise ValueError(
            f"{path} was trained on other {what} ({theirs['description']}) than there are now ({images.description}): "
            "put them back, or begin anew in another folder, without reuse"
        )
    needed = [MODEL_FOLDER] if images.multi_label else [MODEL_FOLDER, PREDICTIONS_FILE]
    if missing := [name for name in needed if not (path / name).exists()]:
        raise ValueError(f"{path} has no {missing[0]} any more: put it back, or remove {path}, and it is made again")


def check_reused(reused: FinishedWork, recipes: Mapping[str, Recipe], seeds: int, images: ImageDataset) -> None:
    """Refuse to reuse a study without any training of these recipes and seeds, or with one on other images.

    Raises:
        ValueError: So it is.
    """
    if reused.folder is None:
        return
    wanted = {seed: [fit_settings(recipe, seed) for recipe in recipes.values()] for seed in range(seeds)}
    reused.refuse_if_useless([settings for of_seed in wanted.values() for settings in of_seed])
    for seed, of_seed in wanted.items():
        splits = split_images(images, seed=seed)
        for run in filter(None, map(reused.run_of, of_seed)):
            check_finished(run.path, run.results, splits)


def check_resumed(folder: RunFolder, names: Iterable[str], seeds: int, images: ImageDataset, stage: str = "") -> None:
    """Refuse to go on with a study that has a finished training, or a stage of one, on other images.

    Raises:
        ValueError: So it is.
    """
    for seed in range(seeds):
        paths = [folder.path / name / f"seed-{seed}" / stage for name in names]
        if done := [path for path in paths if (path / RESULTS_FILE).exists()]:
            splits = split_images(images, seed=seed)
            for path in done:
                check_finished(path, read_json(path / RESULTS_FILE), splits)


def taken_over(runs: Mapping[str, Runs]) -> dict[str, str]:
    """Which runs of models, by name, were taken over from another study, with the folder where each was made."""
    return {
        f"{name}/seed-{seed}": run.results[TAKEN_FROM]
        for name, by_seed in runs.items()
        for seed, run in by_seed.items()
        if TAKEN_FROM in run.results
    }


def summary(runs: Runs, baseline: Runs | None) -> dict[str, Any]:
    """What tables and pictures show of one model: description, metric over the seeds, difference to the baseline.

    There is at least one run; ``None`` is the baseline of the baseline itself.
    """
    own = [run.results for run in runs.values()]
    values = [results["test_metric"] for results in own]
    mean, sd = mean_sd(values)
    return {
        **{key: own[0][key] for key in DESCRIPTION},
        "block_tokens": own[0].get("block_tokens"),
        "metric_mean": mean,
        "metric_sd": sd if len(values) > 1 else None,
        "metrics": values,
        "difference": None if baseline is None else to_json(paired_difference(runs, baseline)),
        "train_seconds": mean_sd([results["seconds"] for results in own])[0],
    }


def paired_difference(ours: Runs, theirs: Runs) -> PairedDifference | None:
    """Paired over the seeds that both have where these are several, over the test images where it is one.

    ``None`` where there is nothing to pair: no common seed, or one with a metric that is not a mean over images.
    """
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) > 1:
        return over_seeds(*([runs[seed].results["test_metric"] for seed in seeds] for runs in (ours, theirs)))
    if not seeds or ours[seeds[0]].results["metric"] != "accuracy":
        return None
    right = [read_tensors(runs[seeds[0]].path / PREDICTIONS_FILE) for runs in (ours, theirs)]
    return over_images(*((r["predictions"] == r["targets"]).tolist() for r in right))


def measure_speeds(
    models: Mapping[str, nn.Module], training: TrainingSettings, *, rounds: int, baseline: str
) -> dict[str, Any]:
    """Measured speed in "inference" and in a "training" step, as the models are trained, interleaved."""
    precision = {"32-true": "float32", "16-mixed": "fp16"}.get(training.precision, "bf16")
    return {
        mode: measure(
            models,
            TimingSettings(
                batch_size=training.batch_size,
                training=mode == "training",
                precision=precision,  # type: ignore[arg-type]
                compile=training.compile,
                rounds=rounds,
                device=str(device_of(training)),
            ),
            baseline=baseline,
        ).as_dict()
        for mode in ("inference", "training")
    }


def device_of(training: TrainingSettings) -> torch.device:
    """The device that a run with these settings trains on."""
    gpu = training.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
