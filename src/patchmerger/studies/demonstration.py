"""The demonstration: a plain ViT trained on digits until it is good, then made faster, and both held side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scipy import stats

from patchmerger.acceleration.accelerating import accelerate
from patchmerger.acceleration.settings import PlacementSettings, RecoverySettings
from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.models.settings import ModelSettings
from patchmerger.runs.checks import check_count
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import mean_sd, over_seeds
from patchmerger.training.fitting import fit
from patchmerger.training.settings import Recipe, TrainingSettings

PLAIN = Recipe(
    data=DataSettings("digits"),
    model=ModelSettings(
        "vit_tiny_patch16_224",
        {
            "img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 2, "class_token": False,
            "global_pool": "avg",
        },
    ),
    merge=None,
    training=TrainingSettings(
        epochs=40, batch_size=32, optimizer="muon", lr=3e-3, warmup_epochs=2, label_smoothing=0.1
    ),
    augmentation=Augmentation("pad", flip=False),
)  # fmt: skip
"""The plain model and its training, chosen on images that the first split does not test on.

By five folds of them Muon comes to 99.4% where AdamW comes to 97.5% in as many epochs, and to 98.6% in half of them.
Varying images by crops after padding, rather than at other sizes or not at all, was chosen on validation images.
"""

PLACEMENT = PlacementSettings(after=2, num_tokens=8, rounds=15)
RECOVERY = RecoverySettings(
    epochs=48, batch_size=32, optimizer="muon", lr=1e-3, merger_lr=1, merger_first=0.1, mixup=0.2, precision="32-true"
)
"""Chosen by the same five folds: of the recoveries that were tried it comes nearest to the plain model
(docs/accelerate.md). In float32 on every CPU: so small a model gains nothing from bf16, as its time goes into starting
operations."""


def demo(
    *, seeds: int = 1, out: Path = Path("runs/demo"), progress: bool = True, command: str | None = None
) -> dict[str, Any]:
    """Train a plain ViT on scikit-learn's digits until it is good, then accelerate it.

    The settings of both steps were chosen on validation images; the test images are looked at once. The same call
    again resumes, and returns the results when they are there.

    Args:
        seeds: How often: seed s fixes the split, the weights and the order of the images.
        out: The folder.
        progress: Say what is done, with bars on a terminal.
        command: The command line that asked for it, kept in the results.

    Returns:
        The content of ``results.json``: for the plain and the merged model the accuracy on test images with a 95%
        interval, their agreement, the paired difference, and the measured speed-up.

    Raises:
        ValueError: ``seeds`` below 1, or a folder of another run.
    """
    check_count("seeds", seeds)
    folder = RunFolder(out, {"plain": PLAIN, "placement": PLACEMENT, "recovery": RECOVERY, "seeds": seeds})
    if folder.results is not None:
        return folder.results
    folder.begin()
    runs = []
    for seed in range(seeds):
        plain = out / f"seed-{seed}" / "plain"
        fit(PLAIN, seed=seed, out=plain, progress=progress)
        runs.append(
            accelerate(
                plain, PLAIN.data, placement=PLACEMENT, recovery=RECOVERY, augmentation=PLAIN.augmentation, seed=seed,
                progress=progress, out=out / f"seed-{seed}" / "merged",
            )
        )  # fmt: skip
    return folder.finish({
        "command": command,
        "settings": folder.settings,
        "data": runs[0]["data"],
        "models": {name: _summary(runs, key) for name, key in (("plain", "plain"), ("merged", "recovered"))},
        "difference": _difference(runs),
        "agreement": mean_sd([run["evaluation"]["recovered"]["agreement"] for run in runs])[0],
        "placement": runs[0]["placement"],
        "speedup": {
            kind: mean_sd([run["speedup"][kind] for run in runs])[0] for kind in ("predicted", "measured")
        },
        "speed": runs[0]["speed"],
        "environment": environment(find_device("cpu")),
        "folder": str(out),
    })  # fmt: skip


def _summary(runs: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Accuracy on the test images with a 95% interval: Wilson's over the images of one seed, Student's over seeds."""
    values = [run["evaluation"][key]["accuracy"] for run in runs]
    images = runs[0]["evaluation"][key]["images"]
    if len(values) == 1:
        low, high = stats.binomtest(round(values[0] * images), images).proportion_ci(method="wilson")
    else:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean_sd(values)[0], scale=stats.sem(values))
    return {"accuracy": mean_sd(values)[0], "interval": [float(low), float(high)], "accuracies": values,
            "images": images}  # fmt: skip


def _difference(runs: list[dict[str, Any]]) -> Any:
    """Merged − plain, paired over the images of one seed, or over several seeds."""
    if len(runs) == 1:
        return runs[0]["evaluation"]["recovered"]["difference"]
    plain, merged = ([run["evaluation"][key]["accuracy"] for run in runs] for key in ("plain", "recovered"))
    return to_json(over_seeds(merged, plain))
