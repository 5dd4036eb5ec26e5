"""The paper's protocol: train upstream, then evaluate on other images, few-shot and fine-tuned, for each variant."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchmerger.data import ImageSplits, read_images, split_images
from patchmerger.data.loading import DataLike, recorded_data, to_read
from patchmerger.fewshot.probe import check_images, few_shot_images
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.hosts.example_inputs import check_patches
from patchmerger.models.classifier import find_classifier
from patchmerger.models.settings import ModelSettings
from patchmerger.runs.environment import environment
from patchmerger.runs.finished_work import FinishedWork
from patchmerger.runs.narrowing import narrowed
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder
from patchmerger.runs.shared_work import SharedWork
from patchmerger.studies.settings import TransferSettings
from patchmerger.studies.training_runs import (
    WORK,
    check_resumed,
    check_reused,
    device_of,
    measure_speeds,
    read_runs,
    study_folder,
    taken_over,
    train_run,
)
from patchmerger.studies.transfer_results import FEW_SHOT, FINE_TUNED, UPSTREAM, summarise
from patchmerger.studies.variants import build_bare, build_recipe, resolve_variants
from patchmerger.training.devices import check_devices
from patchmerger.training.finetuning import content_of
from patchmerger.training.fitting import MODEL_FOLDER, native_size
from patchmerger.training.settings import Recipe


def transfer(
    settings: TransferSettings = TransferSettings(),
    data: DataLike | None = None,
    downstream: DataLike | None = None,
    *,
    out: Path | None = None,
    reuse: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train upstream, then evaluate on other images: few-shot on frozen features, and fine-tuned.

    For each variant, all trained alike. The same call again resumes an interrupted study, within a stage too, and
    returns the result of a finished one; several processes share the variants and seeds.

    Args:
        settings: What is trained, and what it is transferred to.
        data: Images in place of those of the settings: a source, or a dataset of one's own, as in
            :func:`patchmerger.data.load_images`.
        downstream: Likewise.
        out: The folder; runs/transfer-DATA-FINGERPRINT if not given.
        reuse: The folder of an earlier study: trainings of the same settings that are finished there are copied, not
            made again, so that a study can grow by variants and seeds.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being done, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        TypeError: ``data`` is none of these; the message says what would do.
        ValueError: Data that cannot be trained on, or a folder of another run; before any training.
    """
    settings = replace(
        settings,
        data=recorded_data(data, settings.data),
        downstream=recorded_data(downstream, settings.downstream),
    ).resolved()
    folder = study_folder(settings, out, "transfer")
    if (known := folder.results) is not None:
        return known

    check_devices(settings.training)
    check_devices(settings.finetuning.training)
    above, below = (
        read_images(to_read(data, settings.data), validation=settings.data.validation),
        read_images(to_read(downstream, settings.downstream), validation=settings.downstream.validation),
    )
    first = split_images(above, seed=0), split_images(below, seed=0)
    recipes = resolve_variants(settings.variants, settings.plain_recipe(native_size(first[0])), settings.merge)
    _check(first, recipes, settings)
    units = {f"{name}/seed-{seed}": (name, seed) for seed in range(settings.seeds) for name in recipes}
    reused = FinishedWork(reuse, folder.path)
    check_reused(reused, recipes, settings.seeds, above)
    check_resumed(folder, recipes, settings.seeds, above, UPSTREAM)
    check_resumed(folder, recipes, settings.seeds, below, FINE_TUNED)
    folder.begin()
    work = SharedWork(folder.path / WORK, list(units), lambda unit: _is_done(folder.path / unit))
    for unit in work.take():
        name, seed = units[unit]
        images = split_images(above, seed=seed), split_images(below, seed=seed)
        _Stages(folder.path / unit, settings, name, seed, reused, progress).run(recipes[name], *images)
    with work.lock("results", timeout=-1):  # another process may have finished meanwhile
        return folder.results or folder.finish({"command": command, **_results(folder, settings, recipes, first)})


def _results(
    folder: RunFolder, settings: TransferSettings, recipes: Mapping[str, Recipe], first: tuple[ImageSplits, ImageSplits]
) -> dict[str, Any]:
    """Put together what the stages gave, and measure the speed."""
    baseline = "plain" if "plain" in recipes else next(iter(recipes))
    models = {name: build_recipe(recipe, num_classes=len(first[0].class_names)) for name, recipe in recipes.items()}
    return {
        "study": "transfer",
        "init": None if settings.init is None else str(settings.init),
        "settings": folder.settings,
        "data": {UPSTREAM: first[0].description, "downstream": first[1].description},
        "baseline": baseline,
        "variants": {name: summarise(folder.path, name, baseline, settings.seeds) for name in recipes},
        "speed": measure_speeds(models, settings.training, rounds=settings.rounds, baseline=baseline),
        "taken_over": {
            f"{stage} of {unit}": folder_there
            for stage in (UPSTREAM, FEW_SHOT, FINE_TUNED)
            for unit, folder_there in taken_over(
                {name: read_runs(folder.path / name, settings.seeds, stage) for name in recipes}
            ).items()
        },
        "environment": environment(device_of(settings.training)),
        "folder": str(folder.path),
    }


def _is_done(path: Path) -> bool:
    """Whether all stages of a variant and seed, in this folder, are done."""
    return all((path / stage / RESULTS_FILE).exists() for stage in (UPSTREAM, FEW_SHOT, FINE_TUNED))


@dataclass(frozen=True)
class _Stages:
    """The three stages of one variant and seed, each in a folder of its own; those that are done are not done again."""

    path: Path
    settings: TransferSettings
    name: str
    seed: int
    reused: FinishedWork
    progress: bool

    def run(self, recipe: Recipe, above: ImageSplits, below: ImageSplits) -> None:
        """Train upstream, then evaluate few-shot, then fine-tune."""
        self._train(above, recipe, UPSTREAM)
        trained = self.path / UPSTREAM / MODEL_FOLDER
        self._few_shot(trained, below)
        tuning = self.settings.finetuning
        kept = {key: value for key, value in recipe.model.args.items() if "drop" in key}
        finetuned = Recipe(
            self.settings.downstream, ModelSettings(args=kept), init=trained, image_size=tuning.image_size,
            augmentation=tuning.augmentation, training=tuning.training,
        )  # fmt: skip
        self._train(below, finetuned, FINE_TUNED)

    def _train(self, images: ImageSplits, recipe: Recipe, stage: str) -> None:
        name = f"{self.name}, {stage}"
        train_run(
            images, recipe, self.path / stage, seed=self.seed, reused=self.reused, name=name, progress=self.progress
        )

    def _few_shot(self, model: Path, images: ImageSplits) -> None:
        """Few-shot accuracies of a saved model, unless they are known already."""
        data, protocol = self.settings.downstream, narrowed(self.settings, FewShotSettings)
        fixed = {
            "model": content_of(model), "data": data, "images": images.fingerprint, "protocol": protocol,
            "seed": self.seed,
        }  # fmt: skip
        folder = RunFolder(self.path / FEW_SHOT, fixed)
        if folder.results is not None or self.reused.take_run(folder):
            return
        found = find_classifier(model, crop_pct=data.crop_pct)
        folder.begin()
        result = few_shot_images(
            found.model.to(device_of(self.settings.training)), images, protocol, seed=self.seed,
            image_size=found.image_size, preprocessing=found.preprocessing, workers=data.workers,
            progress=self.progress,
        )  # fmt: skip
        folder.finish(result.as_dict())
        if self.progress:
            listed = ", ".join(f"{100 * r.mean:.2f}% of {r.shots}" for r in result.results)
            print(f"{self.name}, few-shot, seed {self.seed}: {listed} images a class", file=sys.stderr)


def _check(first: tuple[ImageSplits, ImageSplits], recipes: Mapping[str, Recipe], settings: TransferSettings) -> None:
    """Refuse what would fail in a later stage, after hours perhaps."""
    above, below = first
    size = settings.finetuning.image_size
    settings.training.check(multi_label=above.multi_label)
    try:
        settings.finetuning.training.check(multi_label=below.multi_label)
    except ValueError as error:
        raise ValueError(f"finetuning.{error}") from error
    check_images(below, settings.shots)
    for name, recipe in recipes.items():
        args = recipe.model.args if size is None else recipe.model.args | {"img_size": size}
        net = build_bare(replace(recipe, model=replace(recipe.model, args=args)), num_classes=2)
        if size is not None:
            try:
                check_patches(net, (size, size))
            except ValueError as error:
                raise ValueError(f"finetuning.{error} ({name})") from error
