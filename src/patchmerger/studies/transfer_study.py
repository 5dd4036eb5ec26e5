"""The paper's protocol: train upstream, then few-shot and fine-tuned on other images, with and without a merger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchmerger.data import (
    Augmentation,
    DataSettings,
    ImageSplits,
    default_augmentation,
    read_images,
    split_images,
)
from patchmerger.fewshot.probe import check_images
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.hub import load
from patchmerger.models.build import check_patches
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs.environment import environment
from patchmerger.runs.files import read_json
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder, default_folder
from patchmerger.runs.shared_work import SharedWork
from patchmerger.studies.settings import FineTuning, Variant
from patchmerger.studies.training_runs import Run, device_of, measure_speeds, train_run
from patchmerger.studies.transfer_stages import few_shot_stage, summarise_few_shot, summarise_training
from patchmerger.studies.variants import build_recipe, resolve_variants
from patchmerger.training.fitting import MODEL_FOLDER, native_size
from patchmerger.training.settings import Recipe, TrainingSettings

UPSTREAM, FEW_SHOT, FINE_TUNED = "upstream", "few-shot", "fine-tuned"


def transfer(
    *,
    data: DataSettings = DataSettings(),
    downstream: DataSettings = DataSettings(),
    model: ModelSettings = ModelSettings(),
    merge: MergeSettings = MergeSettings(),
    variants: list[str] | dict[str, Variant | None] = ["plain", "merged"],  # noqa: B006 - read, never changed
    augmentation: Augmentation | None = None,
    training: TrainingSettings = TrainingSettings(),
    shots: list[int] = [1, 5, 10, 25],  # noqa: B006
    draws: int = 5,
    finetuning: FineTuning = FineTuning(),
    seeds: int = 3,
    rounds: int = 15,
    out: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train upstream, then evaluate on other images: few-shot on frozen features, and fine-tuned.

    For the plain and the merged model, and others if asked for, all trained alike. The same command again goes on
    where it was interrupted, within a stage too, and prints the result when it is finished; several processes of it
    share the variants and seeds. With no options both are the built-in digits, which shows how it works and says
    nothing of transfer.

    Args:
        data: The images to train on upstream.
        downstream: The images to transfer to.
        model: The plain Vision Transformer.
        merge: The merger.
        variants: Any of plain, merged, paper, average and shallow, as for compare; in a config file also names with a
            merger and model of their own.
        augmentation: How training images are varied upstream; padded crops and flips if not given (digits: none).
        training: How each variant is trained upstream.
        shots: Training images of each class in few-shot evaluation, k.
        draws: How often these are drawn; the accuracy of a seed is the mean over them.
        finetuning: How each is fine-tuned.
        seeds: How often all is done; seed s fixes weights, order, held-out images and draws alike for all variants.
        rounds: Rounds of the speed measurement, in which the variants take turns.
        out: The folder; runs/transfer-DATA-FINGERPRINT if not given.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being done, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        ValueError: Settings or data that cannot be trained with, or a folder of another run; before any training.
    """
    for name, number in (("seeds", seeds), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"{name} ({number}) must be at least 1")
    for name, given in (("training", training), ("finetuning.training", finetuning.training)):
        if (given.devices, given.num_nodes) != (1, 1):
            raise ValueError(
                f"{name}.devices ({given.devices}) and num_nodes ({given.num_nodes}) must be 1: a study uses several "
                "devices by a process for each (CUDA_VISIBLE_DEVICES), which share the variants and seeds"
            )
    FewShotSettings(tuple(shots), draws)  # checks them
    augmentation = augmentation or default_augmentation(data.source)
    finetuning = replace(finetuning, augmentation=finetuning.augmentation or default_augmentation(downstream.source))
    settings: dict[str, Any] = {
        "data": data, "downstream": downstream, "model": model, "merge": merge, "variants": variants,
        "augmentation": augmentation, "training": training, "shots": shots, "draws": draws, "finetuning": finetuning,
        "seeds": seeds, "rounds": rounds,
    }  # fmt: skip
    folder = RunFolder(out or default_folder("transfer", data.source, settings), settings)
    if folder.results is not None:
        return folder.results

    above, below = read_images(data), read_images(downstream)
    first = split_images(above, seed=0), split_images(below, seed=0)
    plain = Recipe(data, model.resolve(native_size(first[0])), None, augmentation=augmentation, training=training)
    recipes = resolve_variants(variants, plain, merge)
    _check(first, recipes, training, finetuning, shots)
    folder.begin()
    study = _Study(folder.path, settings, finetuning, progress)
    units = {f"{name}/seed-{seed}": (name, seed) for seed in range(seeds) for name in recipes}
    work = SharedWork(folder.path / ".work", list(units), lambda unit: study.is_done(folder.path / unit))
    for unit in work.take():
        name, seed = units[unit]
        study.run(name, recipes[name], split_images(above, seed=seed), split_images(below, seed=seed), seed)
    with work.lock("results", timeout=-1):
        return folder.results or _finish(folder, study, recipes, first, training, seeds, rounds, command)


def _finish(
    folder: RunFolder,
    study: _Study,
    recipes: Mapping[str, Recipe],
    first: tuple[ImageSplits, ImageSplits],
    training: TrainingSettings,
    seeds: int,
    rounds: int,
    command: str | None,
) -> dict[str, Any]:
    """Put together what the stages gave, and measure the speed."""
    for name in recipes:
        for seed in range(seeds):
            study.read(name, seed)
    baseline = "plain" if "plain" in recipes else next(iter(recipes))
    models = {name: load(study.folder(name, 0) / UPSTREAM / MODEL_FOLDER) for name in recipes}
    results = {
        "study": "transfer",
        "command": command,
        "settings": folder.settings,
        "data": {UPSTREAM: first[0].description, "downstream": first[1].description},
        "baseline": baseline,
        "variants": {name: study.summary(name, baseline) for name in recipes},
        "speed": measure_speeds(models, training, rounds=rounds, baseline=baseline),
        "environment": environment(device_of(training)),
        "folder": str(folder.path),
    }
    folder.finish(results)
    return results


class _Study:
    """The stages of all variants and seeds, each in a folder of its own: VARIANT/seed-N/STAGE."""

    def __init__(self, path: Path, settings: Mapping[str, Any], finetuning: FineTuning, progress: bool) -> None:
        self.path = path
        self.settings = settings
        self.finetuning = finetuning
        self.progress = progress
        self.trained: dict[str, dict[str, dict[int, Run]]] = {UPSTREAM: {}, FINE_TUNED: {}}
        self.few_shot: dict[str, dict[int, dict[str, Any]]] = {}

    def folder(self, name: str, seed: int) -> Path:
        return self.path / name / f"seed-{seed}"

    def run(self, name: str, recipe: Recipe, above: ImageSplits, below: ImageSplits, seed: int) -> None:
        """The three stages of one variant and seed; those that are done are not done again."""
        path, settings = self.folder(name, seed), self.settings
        train_run(above, recipe, path / UPSTREAM, seed=seed, name=f"{name}, upstream", progress=self.progress)
        trained = path / UPSTREAM / MODEL_FOLDER
        few_shot_stage(
            trained, below, path / FEW_SHOT, data=settings["downstream"], shots=settings["shots"],
            draws=settings["draws"], seed=seed, device=device_of(settings["training"]), progress=self.progress,
        )  # fmt: skip
        tuning = self.finetuning
        args = {key: value for key, value in recipe.model.args.items() if "drop" in key}
        finetuned = Recipe(
            settings["downstream"], ModelSettings(args=args), init=trained, image_size=tuning.image_size,
            augmentation=tuning.augmentation, training=tuning.training,
        )  # fmt: skip
        train_run(below, finetuned, path / FINE_TUNED, seed=seed, name=f"{name}, fine-tuning", progress=self.progress)

    def is_done(self, path: Path) -> bool:
        """Whether all stages of a variant and seed, in this folder, are done."""
        return all((path / stage / RESULTS_FILE).exists() for stage in (UPSTREAM, FEW_SHOT, FINE_TUNED))

    def read(self, name: str, seed: int) -> None:
        """Read the results of a variant and seed that is done."""
        path = self.folder(name, seed)
        for stage, runs in self.trained.items():
            runs.setdefault(name, {})[seed] = Run(path / stage, read_json(path / stage / RESULTS_FILE))
        self.few_shot.setdefault(name, {})[seed] = read_json(path / FEW_SHOT / RESULTS_FILE)

    def summary(self, name: str, baseline: str) -> dict[str, Any]:
        """What the table and the picture show of one variant."""
        other = None if name == baseline else baseline
        stages = {stage: summarise_training(self.trained[stage], name, other) for stage in self.trained}
        few = summarise_few_shot(self.few_shot, name, other)
        first = self.trained[UPSTREAM][name][0].results
        keys = ("flops", "params", "tokens_in", "tokens_out", "mergers", "predicted_speedup")
        return {
            **{key: first[key] for key in keys},
            "flops_ratio": first["flops"] / self.trained[UPSTREAM][baseline][0].results["flops"],
            "stages": {UPSTREAM: stages[UPSTREAM], **few, FINE_TUNED: stages[FINE_TUNED]},
        }


def _check(
    first: tuple[ImageSplits, ImageSplits],
    recipes: Mapping[str, Recipe],
    training: TrainingSettings,
    finetuning: FineTuning,
    shots: Sequence[int],
) -> None:
    """Refuse what would fail in a later stage, after hours perhaps."""
    above, below = first
    training.check(multi_label=above.multi_label)
    try:
        finetuning.training.check(multi_label=below.multi_label)
    except ValueError as error:
        raise ValueError(f"finetuning.{error}") from error
    check_images(below, shots)
    for name, recipe in recipes.items():
        size, model = finetuning.image_size, recipe.model
        args = model.args if size is None else model.args | {"img_size": size}
        with torch.device("meta"):
            net = build_recipe(replace(recipe, model=replace(model, args=args, pretrained=False)), num_classes=2)
        if size is not None:
            try:
                check_patches(net, (size, size))
            except ValueError as error:
                raise ValueError(f"finetuning.{error} ({name})") from error
