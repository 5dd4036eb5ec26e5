"""The paper's claim on your own images: the same ViT with and without a merger, trained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchmerger.data import (
    Augmentation,
    DataSettings,
    default_augmentation,
    read_images,
    split_images,
)
from patchmerger.hub import load
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder
from patchmerger.runs.shared_work import SharedWork
from patchmerger.runs.statistics import mean_sd
from patchmerger.studies.settings import Variant
from patchmerger.studies.training_runs import Run, device_of, measure_speeds, summary, train_run
from patchmerger.studies.variants import resolve_variants
from patchmerger.training.fitting import MODEL_FOLDER, native_size
from patchmerger.training.settings import Recipe, TrainingSettings

_WORK = ".work"


def compare(
    *,
    data: DataSettings = DataSettings(),
    model: ModelSettings = ModelSettings(),
    merge: MergeSettings = MergeSettings(),
    variants: list[str] | dict[str, Variant | None] = ["plain", "merged"],  # noqa: B006 - read, never changed
    augmentation: Augmentation | None = None,
    training: TrainingSettings = TrainingSettings(),
    seeds: int = 3,
    rounds: int = 15,
    out: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the same ViT with and without a merger on the same images, and compare them.

    All variants see the same images in the same order under the same schedule and seeds. With no options: three
    stratified splits of the built-in digits, under five minutes on two cores. The same command again goes on
    where it was interrupted, and prints the result when it is finished. Started in a second process, it shares the
    trainings with the first.

    Args:
        data: The images.
        model: The plain Vision Transformer.
        merge: The merger.
        variants: Any of plain, merged, paper, average (pooling in the merger's place) and shallow (fewer blocks,
            the merged model's FLOPs); in a config file also names with a merger and model of their own.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How each variant is trained.
        seeds: How often each variant is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which the variants take turns.
        out: The folder; runs/compare-DATA-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being trained, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Settings or data that cannot be compared, or a folder of another run; before any training.
    """
    if seeds < 1:
        raise ValueError(f"seeds ({seeds}) must be at least 1")
    augmentation = augmentation or default_augmentation(data.source)
    settings: dict[str, Any] = {
        "data": data, "model": model, "merge": merge, "variants": variants, "augmentation": augmentation,
        "training": training, "seeds": seeds, "rounds": rounds,
    }  # fmt: skip
    folder = RunFolder(out or default_folder("compare", data.source, settings), settings)
    finished = folder.results
    if finished is not None:
        return finished

    images = read_images(data)
    splits = split_images(images, seed=0)
    plain = Recipe(data, model.resolve(native_size(splits)), None, augmentation=augmentation, training=training)
    recipes = resolve_variants(variants, plain, merge)
    folder.begin()
    units = {f"{name}/seed-{seed}": (name, seed) for seed in range(seeds) for name in recipes}
    work = SharedWork(folder.path / _WORK, list(units), lambda unit: (folder.path / unit / RESULTS_FILE).exists())
    for unit in work.take():
        name, seed = units[unit]
        splits = split_images(images, seed=seed)
        train_run(splits, recipes[name], folder.path / unit, seed=seed, progress=progress)

    with work.lock("results", timeout=-1):
        finished = folder.results
        if finished is not None:  # by another process meanwhile
            return finished
        results = {"command": command, **_results(folder, recipes, training, seeds, rounds)}
        folder.finish(results)
        return results


def _results(
    folder: RunFolder, recipes: dict[str, Recipe], training: TrainingSettings, seeds: int, rounds: int
) -> dict[str, Any]:
    """What the finished trainings show, with the speed of their models measured in turns."""
    runs: dict[str, dict[int, Run]] = {}
    for name in recipes:
        paths = {seed: folder.path / name / f"seed-{seed}" for seed in range(seeds)}
        runs[name] = {seed: Run(path, read_json(path / RESULTS_FILE)) for seed, path in paths.items()}
    baseline = "plain" if "plain" in recipes else next(iter(recipes))
    models = {name: load(folder.path / name / "seed-0" / MODEL_FOLDER) for name in recipes}
    first = runs[baseline][0].results
    return {
        "settings": folder.settings,
        "data": first["images"],
        "metric": first["metric"],
        "baseline": baseline,
        "variants": {name: _summary(name, runs, baseline) for name in recipes},
        "speed": measure_speeds(models, training, rounds=rounds, baseline=baseline),
        "environment": environment(device_of(training)),
        "folder": str(folder.path),
    }


def _summary(name: str, runs: dict[str, dict[int, Run]], baseline: str) -> dict[str, Any]:
    """What the table and the picture show of one variant."""
    own, base = ([run.results for run in runs[which].values()] for which in (name, baseline))
    return {
        **summary(runs[name], None if name == baseline else runs[baseline]),
        "flops_ratio": own[0]["flops"] / base[0]["flops"],
        "train_seconds_ratio": mean_sd([o["seconds"] / b["seconds"] for o, b in zip(own, base, strict=True)])[0],
        "merger": [run.get("merger") for run in own],
        "history": [run["history"] for run in own],
    }
