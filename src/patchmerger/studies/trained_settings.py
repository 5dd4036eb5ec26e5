"""What fixes each study of trained plain models, as settings that are checked before anything long begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from patchmerger.acceleration.settings import RecoverySettings, Scope
from patchmerger.placing.settings import Sampler
from patchmerger.runs.checks import check_at_least

MERGING_METHODS = ("merger", "placed-merger")
"""Methods of a study of placed tokens that merge."""
PLACING_METHODS = (
    "subset", "grid", "center", "uniform", "gaussian", "sobol", "edges", "learned", *MERGING_METHODS
)  # fmt: skip
"""Its methods by default."""
FINE_TUNED_METHODS = ("subset", "sobol", "edges", "learned", *MERGING_METHODS)
"""Those of them that are fine-tuned by default."""
_NEED_MORE = ("saliency", "given")  # samplers that must be given something with each batch


@dataclass(frozen=True)
class TrainedStudySettings:
    """Trained plain models, and the options that all studies of them share.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        test_images: Test images that count, drawn at random, the same for all models; all if not given.
        recovery: All else about the training; the plain model is the teacher.
        calibration_images: Training images that a merger's queries are computed from.
        rounds: Rounds of the speed measurement, in which all models are interleaved.
        speed_batch_size: Images in a batch of the speed measurement.
    """

    models: Sequence[Path]
    test_images: int | None = None
    recovery: RecoverySettings = RecoverySettings()
    calibration_images: int = 512
    rounds: int = 15
    speed_batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty: name at least one folder of a run of patchmerger fit --merge null")
        check_at_least(2, self, "calibration_images")
        check_at_least(1, self, "speed_batch_size", "test_images")
        given = self.recovery
        if given.scope != "rear" or (given.epochs, given.steps, given.budget) != (None, None, None):
            raise ValueError(
                "recovery.scope, recovery.epochs, recovery.steps and recovery.budget are the study's own: give epochs "
                "(and scopes, of accelerations)"
            )

    def _check_no_repeats(self, *names: str) -> None:
        for name in ("models", *names):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} ({values}) names one twice")


@dataclass(frozen=True)
class AccelerationStudySettings(TrainedStudySettings):
    """What fixes a study of accelerations: trained plain models, speed-ups, methods, and how they are recovered.

    Args:
        speedups: Wanted speed-ups, by FLOPs.
        methods: What makes the model faster: the first is the one that counts, the others are references. A query
            initialisation of a PatchMerger (located, soft, random, ...), a reducer in its place (average, ...), or a
            control: regions (averages over fixed soft regions), cut (fewer blocks, the same FLOPs) or plain (trained
            on for as long).
        scopes: What a recovery trains: "rear", "all" or "rear-then-all".
        epochs: Lengths of the recovery, in passes over the training images; 0 is no recovery at all.
        candidates: Placements that are tried for each speed-up, by a short recovery of the first model, on held-out
            training images; 1 takes the latest that reaches the speed-up.
        keep_rates: Beside the speed-ups, shares of the tokens that each method keeps after a quarter, half and three
            quarters of the blocks, such as 0.7, as in arXiv 2308.04657. Methods are compared at equal numbers of
            tokens there, and their FLOPs are recorded.
    """

    speedups: Sequence[float] = (1.4, 1.6, 2.0)
    methods: Sequence[str] = ("best", "random", "average")
    scopes: Sequence[Scope] = ("rear",)
    epochs: Sequence[float] = (0.0, 1.0)
    candidates: int = 1
    keep_rates: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.speedups or self.keep_rates) or min(self.speedups, default=2) <= 1:
            raise ValueError(
                f"speedups ({self.speedups}) must be at least one number, each above 1, or keep_rates given"
            )
        if not all(0 < rate < 1 for rate in self.keep_rates):
            raise ValueError(f"keep_rates ({self.keep_rates}) must be above 0 and below 1: 0.7, say")
        if not self.epochs or min(self.epochs) < 0:
            raise ValueError(f"epochs ({self.epochs}) must be at least one number, each 0 or above, such as 0 and 1")
        for name in ("methods", "scopes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        self._check_no_repeats("speedups", "keep_rates", "methods", "scopes", "epochs")
        check_at_least(1, self, "rounds", "candidates")


@dataclass(frozen=True)
class PlacingStudySettings(TrainedStudySettings):
    """What fixes a study of placed tokens: trained plain models, numbers of tokens, methods, and the fine-tuning.

    Args:
        fractions: Tokens, as shares of the model's patches.
        methods: Samplers of patchmerger.place ("subset" drops patches at random), "merger" (a PatchMerger at the FLOPs
            of as many placed tokens) and "placed-merger" (more tokens placed, then merged halfway, at the same FLOPs).
            The first is what the others are compared with.
        fine_tuned: Those of them that are also fine-tuned.
        epochs: Length of the fine-tuning in passes over the training images.
        sampler: That of "placed-merger", and the one whose positions the oracle begins with.
        oracle_images: Test images that the oracle sees, with their labels; 0 leaves it out.
        oracle_steps: Its steps of gradient descent.
        workers: Processes that load images; by default those of the models' runs.
        rounds: Rounds of the speed measurement; 0 leaves it out.
    """

    fractions: Sequence[float] = (1.0, 0.5, 0.25, 0.125)
    methods: Sequence[str] = PLACING_METHODS
    fine_tuned: Sequence[str] = FINE_TUNED_METHODS
    epochs: float = 1.0
    sampler: Sampler = "sobol"
    oracle_images: int = 1000
    oracle_steps: int = 50
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions ({self.fractions}) must be at least one share of the patches, up to 1")
        samplers = [name for name in get_args(Sampler) if name not in _NEED_MORE]
        known = (*samplers, *MERGING_METHODS)
        for name in ("methods", "fine_tuned"):
            unknown = [method for method in getattr(self, name) if method not in known]
            if unknown:
                raise ValueError(f"{name} ({unknown[0]!r}) must be among {', '.join(known)}")
        if not self.methods or not set(self.fine_tuned) <= set(self.methods):
            raise ValueError(f"fine_tuned ({self.fine_tuned}) must be among methods ({self.methods})")
        self._check_no_repeats("fractions", "methods", "fine_tuned")
        if self.sampler not in samplers:
            raise ValueError(f"sampler ({self.sampler!r}) must be among {', '.join(samplers)}")
        if not self.epochs > 0:
            raise ValueError(f"epochs ({self.epochs}) must be above 0; fine_tuned [] leaves the fine-tuning out")
        check_at_least(0, self, "oracle_images", "rounds")
        check_at_least(1, self, "oracle_steps")
