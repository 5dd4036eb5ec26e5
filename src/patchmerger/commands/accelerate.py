"""``patchmerger accelerate``: a trained ViT in, a faster one as accurate out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from patchmerger.acceleration.settings import PlacementSettings, QueryInit, QueryInitSettings, RecoverySettings
from patchmerger.commands.shared_options import RunOptions, TrainedModelOptions
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.runs.narrowing import narrowed


@dataclass(frozen=True)
class Command(RunOptions, PlacementSettings, TrainedModelOptions):
    """Make a trained ViT faster: place a merger, initialise its queries, recover accuracy, evaluate, save.

    The same command again resumes an interrupted run, and prints the result of a finished one. The files of the model
    that goes in are never changed.

    Args:
        data: The images; labels are optional.
        query_init: How the merger's queries are initialised: located, soft, reconstruction or random; best is located
            where a recovery follows, else reconstruction.
        calibration_images: Training images that the queries are computed from, without labels.
        epochs: Length of the recovery in passes over the training images, also a part of one; 0 for none. 1 if not
            given.
        budget: In its place the time for it, such as 10min, 90s or 2h.
        max_drop: The drop of accuracy that is accepted, in points; 0.5 if not given. Needs labels.
        labels: Whether labels are used; by default if there are any.
        recovery: How accuracy is recovered.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        architecture: For a safetensors file, the architecture in timm.
        model_args: For a safetensors file, further arguments of timm.create_model.
        preprocessing: How images are prepared, in place of what is known of the model.
        seed: Fixes the images that are held out and all randomness.
    """

    data: DataSettings = DataSettings()
    query_init: QueryInit = "best"
    calibration_images: int = 512
    epochs: float | None = None
    budget: str | None = None
    max_drop: float | None = None
    labels: bool | None = None
    recovery: RecoverySettings = RecoverySettings()
    augmentation: Augmentation | None = None
    architecture: str | None = None
    model_args: dict[str, Any] | None = None
    preprocessing: Preprocessing | None = None
    seed: int = 0

    def run(self, command: str) -> int:
        """Accelerate, and show the result."""
        query_init = QueryInitSettings(self.query_init, self.calibration_images)
        given: dict[str, Any] = {"epochs": self.epochs, "budget": self.budget}
        recovery = replace(self.recovery, **{name: value for name, value in given.items() if value is not None})

        from patchmerger.acceleration.accelerating import accelerate, find_teacher
        from patchmerger.models.finding import find_model
        from patchmerger.reports.accelerate import report

        found = find_model(self.model, architecture=self.architecture, model_args=self.model_args)
        teacher = find_teacher(found, preprocessing=self.preprocessing, crop_pct=self.data.crop_pct)
        results = accelerate(
            teacher, self.data, placement=narrowed(self, PlacementSettings), query_init=query_init, recovery=recovery,
            augmentation=self.augmentation, max_drop=self.max_drop,
            labels=self.labels, seed=self.seed, out=self.out, progress=self.progress, command=command,
        )  # fmt: skip
        report(results)
        return 0
