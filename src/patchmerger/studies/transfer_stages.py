"""The stages of a transfer study: the few-shot one, and what is shown of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from patchmerger.data import DataSettings, ImageSplits
from patchmerger.fewshot.probe import few_shot_images
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.hub import describe, load
from patchmerger.models.build import square_input
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import TRAINING_NOISE, PairedDifference, mean_sd, over_seeds
from patchmerger.studies.training_runs import Runs, summary
from patchmerger.training.finetuning import content_of


def few_shot_stage(
    model: Path,
    images: ImageSplits,
    path: Path,
    *,
    data: DataSettings,
    shots: Sequence[int],
    draws: int,
    seed: int,
    device: torch.device,
    progress: bool = True,
) -> dict[str, Any]:
    """Few-shot accuracies of a saved model, unless they are known already.

    Args:
        model: Its folder.
        images: Of this seed.
        path: The folder of the stage.
        data: What the images were read with.
        shots: Images of each class, k.
        draws: How often they are drawn.
        seed: Fixes the draws.
        device: Where the features are made.
        progress: Say on standard error what was found.
    """
    fixed = {"model": content_of(model), "data": data, "shots": shots, "draws": draws, "seed": seed}
    folder = RunFolder(path, fixed)
    if folder.results is not None:
        return folder.results
    saved = describe(model)
    net = load(model, device=device)
    if saved.preprocessing is None:
        raise ValueError(f"{model} does not say how its images are normalised")
    preprocessing = replace(saved.preprocessing, crop_pct=data.crop_pct or saved.preprocessing.crop_pct)
    folder.begin()
    found = few_shot_images(
        net, images, FewShotSettings(tuple(shots), draws), seed=seed, image_size=square_input(net),
        preprocessing=preprocessing, workers=data.workers, progress=progress,
    )  # fmt: skip
    results = found.as_dict()
    folder.finish(results)
    if progress:
        listed = ", ".join(f"{100 * r.mean:.2f}% of {r.shots}" for r in found.results)
        print(f"{path.parent.parent.name}, few-shot, seed {seed}: {listed} images a class", file=sys.stderr)
    return results


def summarise_training(runs: Mapping[str, Runs], name: str, baseline: str | None) -> dict[str, Any]:
    """What is shown of a stage that trains.

    Args:
        runs: Of all variants.
        name: The variant.
        baseline: The one to compare with; ``None`` for the baseline itself.
    """
    own = [run.results for run in runs[name].values()]
    return {
        **summary(runs[name], None if baseline is None else runs[baseline]),
        "metric": own[0]["metric"],
        "images_per_second": mean_sd([results["images_per_second"] for results in own])[0],
        "history": [results["history"] for results in own],
        "merger": [results["merger"] for results in own],
    }


def summarise_few_shot(
    found: Mapping[str, Mapping[int, Mapping[str, Any]]], name: str, baseline: str | None
) -> dict[str, dict[str, Any]]:
    """What is shown of each k, as "5-shot" and so on: the metric of a seed is the mean over its draws.

    Args:
        found: The results of all variants, by seed.
        name: The variant.
        baseline: The one to compare with; ``None`` for the baseline itself.
    """
    own = list(found[name].values())
    theirs = None if baseline is None else list(found[baseline].values())
    features = mean_sd([results["seconds"]["features"] for results in own])[0]
    images = sum(own[0]["images"][key] for key in ("drawn", "validation", "test"))
    stages = {}
    for place, first in enumerate(own[0]["results"]):
        values = [results["results"][place]["mean"] for results in own]
        mean, sd = mean_sd(values)
        stages[f"{first['shots']}-shot"] = {
            "metric": "accuracy",
            "metric_mean": mean,
            "metric_sd": sd if len(values) > 1 else None,
            "metrics": values,
            "difference": None if theirs is None else to_json(_difference(place, own, theirs)),
            "feature_seconds": features,
            "images_per_second": images / features,
        }
    return stages


def _difference(
    place: int, own: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> PairedDifference | None:
    """Paired over the seeds; over the draws where there is one seed."""
    if len(own) > 1:
        return over_seeds(*([results["results"][place]["mean"] for results in both] for both in (own, theirs)))
    draws = [results[0]["results"][place]["accuracies"] for results in (own, theirs)]
    return replace(over_seeds(*draws), over="draws", leaves_out=TRAINING_NOISE) if len(draws[0]) > 1 else None
