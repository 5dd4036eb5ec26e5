"""The paper's claim on your own images: the same ViT with and without a merger, trained alike."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from patchmerger.benchmark import measure
from patchmerger.data import (
    Augmentation,
    DataSettings,
    ImageSplits,
    default_augmentation,
    read_images,
    split_images,
)
from patchmerger.environment import environment
from patchmerger.fitting import MODEL_FOLDER, PREDICTIONS_FILE, fit_images, native_size
from patchmerger.hub import load
from patchmerger.models import MergeSettings, ModelSettings
from patchmerger.paired import PairedDifference, mean_sd, over_images, over_seeds
from patchmerger.run_folder import RunFolder, default_folder, plain
from patchmerger.studies.pictures import draw_comparison
from patchmerger.studies.variants import Recipe, Variant, resolve_variants
from patchmerger.training_settings import TrainingSettings

PICTURE_FILE = "comparison.png"


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
    progress: bool = True,
) -> dict[str, Any]:
    """Train the same ViT with and without a merger on the same images, and compare them.

    All variants see the same images in the same order under the same schedule and seeds. With no options: three
    stratified splits of the built-in digits, under five minutes on two cores. The same command again goes on
    where it was interrupted, and prints the result when it is finished.

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
    if folder.results is not None:
        return folder.results

    images = read_images(data)
    splits = split_images(images, seed=0)
    recipes = resolve_variants(variants, model.resolve(native_size(splits)), merge)
    folder.begin()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in recipes}
    for seed in range(seeds):
        splits = split_images(images, seed=seed)
        for name, recipe in recipes.items():
            runs[name].append(_train(splits, recipe, settings, folder.path / name, seed, progress))

    speeds = _speeds(folder.path, list(recipes), training, rounds)
    results = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "settings": folder.settings,
        "data": runs[next(iter(recipes))][0]["images"],
        "metric": runs[next(iter(recipes))][0]["metric"],
        "baseline": "plain" if "plain" in recipes else next(iter(recipes)),
        "variants": {},
        "speed": speeds,
        "environment": environment(_device(training)),
    }
    for name in recipes:
        results["variants"][name] = _summary(name, runs, results["baseline"], folder.path)
    draw_comparison(results, folder.path / PICTURE_FILE)
    results["folder"] = str(folder.path)
    folder.finish(results)
    return results


def _train(
    images: ImageSplits, recipe: Recipe, settings: dict[str, Any], path: Path, seed: int, progress: bool
) -> dict[str, Any]:
    """Train one variant with one seed, unless that is done."""
    model, merge = recipe
    shared = {key: settings[key] for key in ("data", "augmentation", "training")}
    folder = RunFolder(path / f"seed-{seed}", {**shared, "model": model, "merge": merge, "seed": seed})
    if folder.results is not None:
        return folder.results
    run = f"{path.name}, seed {seed}"
    if progress:
        print(f"{run}: training", file=sys.stderr)
    results = fit_images(images, **shared, model=model, merge=merge, seed=seed, folder=folder, progress=progress)
    if progress:
        value, seconds = 100 * results["test_metric"], results["seconds"]
        print(f"{run}: {results['metric']} {value:.2f}% after {seconds:.0f} s", file=sys.stderr)
    return results


def _speeds(path: Path, names: list[str], training: TrainingSettings, rounds: int) -> dict[str, Any]:
    """Measured inference and training throughput of the variants, which take turns."""
    device = _device(training)
    models = {name: load(path / name / "seed-0" / MODEL_FOLDER) for name in names}
    precision = {"32-true": "float32", "16-mixed": "fp16"}.get(training.precision, "bf16")
    return {
        mode: measure(
            models,
            batch_size=training.batch_size,
            training=mode == "training",
            precision=precision,  # type: ignore[arg-type]
            compile=training.compile,
            rounds=rounds,
            device=device,
            baseline="plain" if "plain" in models else names[0],
        ).as_dict()
        for mode in ("inference", "training")
    }


def _summary(name: str, runs: dict[str, list[dict[str, Any]]], baseline: str, path: Path) -> dict[str, Any]:
    """What the table and the picture show of one variant."""
    own = runs[name]
    values = [run["test_metric"] for run in own]
    mean, sd = mean_sd(values)
    keys = ("flops", "params", "tokens_in", "tokens_out", "mergers", "predicted_speedup")
    return {
        **{key: own[0][key] for key in keys},
        "flops_ratio": own[0]["flops"] / runs[baseline][0]["flops"],
        "metric_mean": mean,
        "metric_sd": sd if len(values) > 1 else None,
        "metrics": values,
        "difference": None if name == baseline else plain(_difference(name, runs, baseline, path)),
        "train_seconds": mean_sd([run["seconds"] for run in own])[0],
        "train_seconds_ratio": mean_sd(
            [run["seconds"] / base["seconds"] for run, base in zip(own, runs[baseline], strict=True)]
        )[0],
        "history": [run["history"] for run in own],
    }


def _difference(name: str, runs: dict[str, list[dict[str, Any]]], baseline: str, path: Path) -> PairedDifference | None:
    """Paired over seeds where there are several, else over the test images."""
    if len(runs[name]) > 1:
        return over_seeds(*([run["test_metric"] for run in runs[which]] for which in (name, baseline)))
    if runs[name][0]["metric"] != "accuracy":
        return None
    right = [load_file(path / which / "seed-0" / PREDICTIONS_FILE) for which in (name, baseline)]
    return over_images(*((r["predictions"] == r["targets"]).tolist() for r in right))


def _device(training: TrainingSettings) -> torch.device:
    gpu = training.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")
