"""The paper's claim on your own images: the same ViT with and without a merger, trained alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchmerger.data import read_images, split_images
from patchmerger.data.loading import DataLike, recorded_data, to_read
from patchmerger.runs.environment import environment
from patchmerger.runs.finished_work import FinishedWork
from patchmerger.runs.run_folder import RESULTS_FILE, RunFolder
from patchmerger.runs.shared_work import SharedWork
from patchmerger.runs.statistics import mean_sd
from patchmerger.studies.settings import ComparisonSettings
from patchmerger.studies.training_runs import (
    WORK,
    Runs,
    check_resumed,
    check_reused,
    device_of,
    measure_speeds,
    read_runs,
    study_folder,
    summary,
    taken_over,
    train_run,
)
from patchmerger.studies.variants import build_recipe, resolve_variants
from patchmerger.training.devices import check_devices
from patchmerger.training.fitting import native_size
from patchmerger.training.settings import Recipe


def compare(
    settings: ComparisonSettings = ComparisonSettings(),
    data: DataLike | None = None,
    *,
    out: Path | None = None,
    reuse: Path | None = None,
    command: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the same ViT with and without a merger on the same images, and compare them.

    All variants see the same images in the same order under the same schedule and seeds. The same call again resumes
    an interrupted comparison, and returns the result of a finished one. In a second process it shares the trainings.

    Args:
        settings: What is compared.
        data: Images in place of those of the settings: a source, or a dataset of one's own, as in
            :func:`patchmerger.data.load_images`.
        out: The folder; runs/compare-DATA-FINGERPRINT if not given.
        reuse: The folder of an earlier study: trainings of the same settings that are finished there are copied, not
            made again, so that a study can grow by variants and seeds.
        command: The command line that asked for it, kept in the results.
        progress: Say what is being trained, with a progress bar on a terminal.

    Returns:
        The content of ``results.json``.

    Raises:
        TypeError: ``data`` is none of these; the message says what would do.
        ValueError: Data that cannot be compared on, a folder of another run, or one to ``reuse`` without any run of
            these settings; before any training.
    """
    settings = replace(settings, data=recorded_data(data, settings.data)).resolved()
    folder = study_folder(settings, out, "compare")
    if (known := folder.results) is not None:
        return known

    check_devices(settings.training)
    images = read_images(to_read(data, settings.data), validation=settings.data.validation)
    recipes = resolve_variants(
        settings.variants, settings.plain_recipe(native_size(split_images(images, seed=0))), settings.merge
    )
    units = {f"{name}/seed-{seed}": (name, seed) for seed in range(settings.seeds) for name in recipes}
    reused = FinishedWork(reuse, folder.path)
    check_reused(reused, recipes, settings.seeds, images)
    check_resumed(folder, recipes, settings.seeds, images)
    folder.begin()
    work = SharedWork(folder.path / WORK, list(units), lambda unit: (folder.path / unit / RESULTS_FILE).exists())
    for unit in work.take():
        name, seed = units[unit]
        train_run(
            split_images(images, seed=seed), recipes[name], folder.path / unit, seed=seed, reused=reused,
            progress=progress,
        )  # fmt: skip

    with work.lock("results", timeout=-1):  # another process may have finished meanwhile
        return folder.results or folder.finish({"command": command, **_results(folder, settings, recipes)})


def _results(folder: RunFolder, settings: ComparisonSettings, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """What the finished trainings show, with the interleaved speed of their models."""
    runs = {name: read_runs(folder.path / name, settings.seeds) for name in recipes}
    baseline = "plain" if "plain" in recipes else next(iter(recipes))
    first = runs[baseline][0].results
    models = {name: build_recipe(recipe, num_classes=first["classes"]) for name, recipe in recipes.items()}
    return {
        "study": "compare",
        "init": None if settings.init is None else str(settings.init),
        "settings": folder.settings,
        "data": first["images"],
        "metric": first["metric"],
        "baseline": baseline,
        "variants": {name: _summary(runs[name], runs[baseline]) for name in recipes},
        "speed": measure_speeds(models, settings.training, rounds=settings.rounds, baseline=baseline),
        "taken_over": taken_over(runs),
        "environment": environment(device_of(settings.training)),
        "folder": str(folder.path),
    }


def _summary(runs: Runs, baseline: Runs) -> dict[str, Any]:
    """What the table and the picture show of one variant."""
    own, base = ([run.results for run in which.values()] for which in (runs, baseline))
    return {
        **summary(runs, None if runs is baseline else baseline),
        "flops_ratio": own[0]["flops"] / base[0]["flops"],
        "train_seconds_ratio": mean_sd([o["seconds"] / b["seconds"] for o, b in zip(own, base, strict=True)])[0],
        "merger": [run["merger"] for run in own],
        "history": [run["history"] for run in own],
    }
