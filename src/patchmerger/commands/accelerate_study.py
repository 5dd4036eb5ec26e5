"""``patchmerger accelerate-study``: trained ViTs, made faster by several methods and recovered alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.acceleration.settings import RecoverySettings, Scope
from patchmerger.studies.settings import AccelerationStudySettings


@dataclass(frozen=True)
class Command:
    """Make trained plain models faster by several methods, recover each alike, and compare them.

    Methods at one speed-up share a placement, kept tokens, images and order. The same command again resumes an
    interrupted run; a second process beside it shares the work.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        speedups: Wanted speed-ups, by FLOPs.
        methods: What makes the model faster: the first is the one that counts, the others are references. A query
            initialisation of a PatchMerger (located, soft, random, ...), a reducer in its place (average, ...), or a
            control: regions (averages over fixed soft regions), cut (fewer blocks, the same FLOPs) or plain (trained
            on for as long).
        scopes: What a recovery trains: rear, all or rear-then-all.
        epochs: Lengths of the recovery, in passes over the training images; 0 is no recovery at all.
        recovery: All else about it.
        candidates: Placements that are tried for each speed-up, by a short recovery of the first model, on held-out
            training images; 1 takes the latest that reaches the speed-up.
        calibration_images: Training images that the queries are computed from.
        rounds: Rounds of the speed measurement, in which all models are interleaved.
        speed_batch_size: Images in a batch of the speed measurement.
        out: The folder of the results; runs/accelerate-study-FINGERPRINT if not given.
        progress: Show what is being done.
    """

    models: list[Path]
    speedups: list[float] = field(default_factory=lambda: [1.4, 1.6, 2.0])
    methods: list[str] = field(default_factory=lambda: ["best", "random", "average"])
    scopes: list[Scope] = field(default_factory=lambda: ["rear"])
    epochs: list[float] = field(default_factory=lambda: [0.0, 1.0])
    recovery: RecoverySettings = RecoverySettings()
    candidates: int = 1
    calibration_images: int = 512
    rounds: int = 15
    speed_batch_size: int = 32
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Accelerate all, and show the table."""
        from patchmerger.reports.acceleration_study import report_accelerations
        from patchmerger.studies.acceleration_study import accelerate_study

        settings = AccelerationStudySettings(
            self.models, self.speedups, self.methods, self.scopes, self.epochs, self.recovery, self.candidates,
            self.calibration_images, self.rounds, self.speed_batch_size,
        )  # fmt: skip
        results = accelerate_study(settings, out=self.out, command=command, progress=self.progress)
        report_accelerations(results)
        return 0
