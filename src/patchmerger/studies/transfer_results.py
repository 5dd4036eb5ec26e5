"""What the stages of a transfer study show of each variant, put together from their folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchmerger.runs.files import read_json
from patchmerger.runs.run_folder import RESULTS_FILE
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import TRAINING_NOISE, PairedDifference, mean_sd, over_seeds
from patchmerger.studies.training_runs import DESCRIPTION, Runs, read_runs, summary

UPSTREAM, FEW_SHOT, FINE_TUNED = "upstream", "few-shot", "fine-tuned"
"""The stages, and the names of their folders."""


def summarise(path: Path, name: str, baseline: str, seeds: int) -> dict[str, Any]:
    """What the table and the picture show of one variant, from the folder of the study, with all stages done."""
    runs = {
        which: {stage: read_runs(path / which, seeds, stage) for stage in (UPSTREAM, FINE_TUNED)}
        for which in {name, baseline}
    }
    few = {
        which: [read_json(path / which / f"seed-{s}" / FEW_SHOT / RESULTS_FILE) for s in range(seeds)] for which in runs
    }
    own, other = runs[name], None if name == baseline else runs[baseline]
    first, base = own[UPSTREAM][0].results, runs[baseline][UPSTREAM][0].results
    return {
        **{key: first[key] for key in DESCRIPTION},
        "flops_ratio": first["flops"] / base["flops"],
        "stages": {
            UPSTREAM: _trained(own[UPSTREAM], None if other is None else other[UPSTREAM]),
            **_few_shot(few[name], None if other is None else few[baseline]),
            FINE_TUNED: _trained(own[FINE_TUNED], None if other is None else other[FINE_TUNED]),
        },
    }


def _trained(runs: Runs, baseline: Runs | None) -> dict[str, Any]:
    """What is shown of a stage that trains."""
    own = [run.results for run in runs.values()]
    return {
        **summary(runs, baseline),
        "metric": own[0]["metric"],
        "images_per_second": mean_sd([results["images_per_second"] for results in own])[0],
        "history": [results["history"] for results in own],
        "merger": [results["merger"] for results in own],
    }


Found = Sequence[Mapping[str, Any]]
"""Few-shot results of one variant, by seed."""


def _few_shot(own: Found, theirs: Found | None) -> dict[str, dict[str, Any]]:
    """What is shown of each k, as "5-shot" and so on: the metric of a seed is the mean over its draws."""
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


def _difference(place: int, own: Found, theirs: Found) -> PairedDifference | None:
    """Paired over the seeds; over the draws where there is one seed."""
    if len(own) > 1:
        return over_seeds(*([results["results"][place]["mean"] for results in both] for both in (own, theirs)))
    draws = [results[0]["results"][place]["accuracies"] for results in (own, theirs)]
    if len(draws[0]) < 2:
        return None
    return replace(over_seeds(*draws), over="draws", leaves_out=TRAINING_NOISE)
