"""``patchmerger accelerate-study``: trained ViTs, accelerated to several speed-ups with several budgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.acceleration.settings import QueryInit, RecoverySettings
from patchmerger.studies.settings import AccelerationStudySettings


@dataclass(frozen=True)
class Command:
    """Accelerate trained plain models to several speed-ups with several budgets of training.

    A budget is a share of the steps that the plain model was trained for. Beside the merged models stands the plain
    one, fine-tuned with the labels for the same budget. The same command again resumes an interrupted run.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        speedups: Wanted speed-ups, by FLOPs.
        budgets: Shares of the original training steps; 0 is no training at all.
        query_inits: How the queries are initialised: the first is the one that counts, the others are references.
        recovery: How accuracy is recovered.
        calibration_images: Training images that the queries are computed from.
        rounds: Rounds of the speed measurement, in which all models are timed in turn.
        out: The folder of the results; runs/accelerate-study-FINGERPRINT if not given.
        progress: Show what is being done.
    """

    models: list[Path]
    speedups: list[float] = field(default_factory=lambda: [1.5, 1.8, 2.0, 2.5, 3.0])
    budgets: list[float] = field(default_factory=lambda: [0.0, 0.01, 0.05, 0.1])
    query_inits: list[QueryInit] = field(default_factory=lambda: ["best", "random"])
    recovery: RecoverySettings = RecoverySettings()
    calibration_images: int = 512
    rounds: int = 15
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Accelerate all, and show the table."""
        from patchmerger.reports.acceleration_study import report_accelerations
        from patchmerger.studies.acceleration_study import accelerate_study

        settings = AccelerationStudySettings(
            self.models, self.speedups, self.budgets, self.query_inits, self.recovery, self.calibration_images,
            self.rounds,
        )  # fmt: skip
        results = accelerate_study(settings, out=self.out, command=command, progress=self.progress)
        report_accelerations(results)
        return 0
