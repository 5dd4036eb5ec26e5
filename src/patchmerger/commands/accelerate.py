"""``patchmerger accelerate``: a trained ViT in, a faster one as accurate out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from patchmerger.acceleration.settings import PlacementSettings, QueryInit, QueryInitSettings, RecoverySettings
from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.mechanism.options import Positions


@dataclass(frozen=True)
class Command:
    """Make a trained ViT faster: place a merger, initialise its queries, recover accuracy, evaluate, save.

    The same command again resumes an interrupted run, and prints the result of a finished one. The files of the model
    that goes in are never changed.

    Args:
        model: The trained model: a folder (of patchmerger, of a run, of transformers), a timm architecture with
            weights, a name on the Hugging Face Hub, or a safetensors file.
        data: The images; labels are optional.
        speedup: Wanted speed-up, predicted by FLOPs; the merge comes as late as it allows. 2 if not given.
        after: In its place the block to merge after, counted from 1.
        num_tokens: Tokens that go on; chosen with the block if not given.
        positions: As in insert; by default what the model needs.
        measure: Let a measurement on this machine reach the speed-up, rather than the prediction.
        query_init: How the merger's queries are initialised: located, reconstruction, soft, kmeans, spatial or random;
            best is located where a recovery follows, else reconstruction.
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
        mean: Mean of each channel, in place of what the model says.
        std: Standard deviation of each channel, likewise.
        rounds: Rounds of the speed measurement, in which both models are timed in turn.
        seed: Fixes the images that are held out and all randomness.
        out: The folder of the results; runs/accelerate-MODEL-FINGERPRINT if not given.
        progress: Show which step runs and how accurate the model is, with bars on a terminal.
    """

    model: str
    data: DataSettings = DataSettings()
    speedup: float | None = None
    after: int | None = None
    num_tokens: int | None = None
    positions: Positions | None = None
    measure: bool = False
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
    mean: list[float] | None = None
    std: list[float] | None = None
    rounds: int = 10
    seed: int = 0
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Accelerate, and show the result."""
        placement = PlacementSettings(
            self.speedup, self.after, self.num_tokens, self.positions, self.measure, self.rounds
        )
        query_init = QueryInitSettings(self.query_init, self.calibration_images)
        recovery = self.recovery
        if self.epochs is not None or self.budget is not None:
            recovery = replace(recovery, epochs=self.epochs, budget=self.budget)

        from patchmerger.acceleration.run import accelerate
        from patchmerger.acceleration.teachers import find_teacher
        from patchmerger.reports.acceleration import report_acceleration

        teacher = find_teacher(
            self.model, architecture=self.architecture, model_args=self.model_args,
            mean=None if self.mean is None else tuple(self.mean), std=None if self.std is None else tuple(self.std),
            crop_pct=self.data.crop_pct,
        )  # fmt: skip
        results = accelerate(
            teacher, self.data, placement=placement, query_init=query_init, recovery=recovery,
            augmentation=self.augmentation, max_drop=self.max_drop, labels=self.labels, seed=self.seed, out=self.out,
            progress=self.progress, command=command,
        )  # fmt: skip
        report_acceleration(results)
        return 0
