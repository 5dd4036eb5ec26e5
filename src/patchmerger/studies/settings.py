"""What fixes each study, as settings that are checked before anything long begins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias, get_args

from patchmerger.acceleration.settings import RecoverySettings, Scope
from patchmerger.data.settings import Augmentation, DataSettings, OwnData, default_augmentation
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.mechanism.options import Norm
from patchmerger.models.settings import MergeSettings
from patchmerger.placing.settings import Sampler
from patchmerger.runs.checks import check_at_least
from patchmerger.runs.narrowing import narrowed
from patchmerger.training.settings import Recipe, TrainingSettings, check_data

MERGING_METHODS = ("merger", "placed-merger")
"""Methods of a study of placed tokens that merge."""
PLACING_METHODS = (
    "subset", "grid", "center", "uniform", "gaussian", "sobol", "edges", "learned", *MERGING_METHODS
)  # fmt: skip
"""Its methods by default."""
FINE_TUNED_METHODS = ("subset", "sobol", "edges", "learned", *MERGING_METHODS)
"""Those of them that are fine-tuned by default."""
_NEED_MORE = ("saliency", "given")  # samplers that must be given something with each batch


def _check_one_device(name: str, training: TrainingSettings) -> None:
    if (training.devices, training.num_nodes) != (1, 1):
        raise ValueError(
            f"{name}.devices ({training.devices}) and {name}.num_nodes ({training.num_nodes}) must be 1: a study uses "
            "several devices by a process for each (CUDA_VISIBLE_DEVICES), which share the work"
        )


@dataclass(frozen=True)
class Variant:
    """A variant of one's own: what it changes.

    Args:
        merge: Its merger; null for none.
        model: Arguments for timm.create_model that differ, such as depth.
    """

    merge: MergeSettings | None = None
    model: dict[str, Any] | None = None


Variants: TypeAlias = Sequence[str] | Mapping[str, Variant | None]
"""Names of ready-made variants, or names with what they change."""


@dataclass(frozen=True)
class StudySettings(Recipe):
    """A recipe that several models are trained by, from scratch, and how often.

    Args:
        model: The plain Vision Transformer.
        merge: The merger.
        training: How each model is trained.
        seeds: How often each is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which the models are timed in turn.

    Raises:
        ValueError: Settings that cannot be studied.
    """

    merge: MergeSettings = MergeSettings()
    init: None = field(default=None, init=False)
    seeds: int = 3
    rounds: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "seeds", "rounds")
        if not isinstance(self.merge, MergeSettings):
            raise TypeError(f"merge ({self.merge}) must be MergeSettings: a study needs a merger")

    def plain_recipe(self, native_size: int) -> Recipe:
        """The recipe of the plain model, with every default in its place.

        Args:
            native_size: Of the images, in pixels, for which the default model is made where none is named.
        """
        full = self.resolved()
        return replace(narrowed(full, Recipe), model=full.model.resolve(native_size), merge=None)


@dataclass(frozen=True)
class ComparisonSettings(StudySettings):
    """What fixes a comparison: a recipe, and the variants that are trained by it.

    Args:
        variants: Any of plain, merged, paper, located (queries that begin with places), average (pooling in the
            merger's place) and shallow (fewer blocks, the merged model's FLOPs); in a config file also names with a
            merger and model of their own.
    """

    variants: Variants = ("plain", "merged")


@dataclass(frozen=True)
class Grid:
    """The mergers of a sweep: every combination of the values, and further ones.

    Args:
        after: Blocks to merge after, counted from 1; a quarter, half and three quarters of the depth if not given.
        num_tokens: Numbers of tokens that go on, M.
        norm: Where to normalise, "scores", "both" or "none": the grid is trained with each; as in merge if not given.
        scale: Factors on the scores, likewise.
        logit_std: Standard deviations of the scores at the start, likewise.
        further: Mergers outside the grid, by name, such as two of them: {two: {after: [2, 4], num_tokens: [16, 8]}}.

    Raises:
        ValueError: No value for ``after`` or ``num_tokens``, one given twice, or a name that no folder can have.
    """

    after: Sequence[int] | None = None
    num_tokens: Sequence[int] = (4, 8, 16)
    norm: Sequence[Norm] = ()
    scale: Sequence[float] = ()
    logit_std: Sequence[float] = ()
    further: Mapping[str, MergeSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("after", "num_tokens", "norm", "scale", "logit_std"):
            values = getattr(self, name)
            if values is not None and len(set(values)) < len(values):
                raise ValueError(f"{name} ({list(values)}) names a value twice")
            if name in ("after", "num_tokens") and values is not None and not values:
                raise ValueError(f"{name} is empty: give at least one value")
        for name in self.further:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"further ({name!r}) must be letters, digits, '-', '_' and '.', as of a folder")


@dataclass(frozen=True)
class SweepSettings(StudySettings, Grid):
    """What fixes a sweep: a recipe, and the grid of mergers that are trained by it, each on one device.

    Args:
        merge: What the grid does not vary of the merger: prefix, preset, ...
    """

    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        Grid.__post_init__(self)
        _check_one_device("training", self.training)
        merge, plain = self.merge, MergeSettings()
        if (merge.after, merge.num_tokens) != (plain.after, plain.num_tokens):
            raise ValueError(
                f"merge.after ({merge.after}) and merge.num_tokens ({merge.num_tokens}) are what a sweep varies: give "
                "after and num_tokens"
            )


@dataclass(frozen=True)
class FineTuning:
    """How a model that was trained upstream is fine-tuned.

    Args:
        training: Epochs, optimiser, rates, ...
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        image_size: Height and width in pixels; as upstream if not given.
    """

    training: TrainingSettings = TrainingSettings(epochs=5, lr=1e-3)
    augmentation: Augmentation | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        _check_one_device("finetuning.training", self.training)


@dataclass(frozen=True)
class TransferSettings(ComparisonSettings, FewShotSettings):
    """What fixes a transfer study: a recipe for the training upstream, its variants, and what they are transferred to.

    Args:
        data: The images to train on upstream.
        downstream: The images to transfer to.
        augmentation: How training images are varied upstream; padded crops and flips if not given (digits: none).
        training: How each variant is trained upstream.
        finetuning: How each is fine-tuned.
        seeds: How often all is done; seed s fixes weights, order, held-out images and draws alike for all variants.
    """

    downstream: DataSettings | OwnData = DataSettings()
    finetuning: FineTuning = FineTuning()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_data("downstream", self.downstream)
        FewShotSettings.__post_init__(self)
        _check_one_device("training", self.training)

    def resolved(self) -> Self:
        """The same with every default that depends on other settings in its place."""
        augmentation = self.finetuning.augmentation or default_augmentation(self.downstream.source)
        return replace(super().resolved(), finetuning=replace(self.finetuning, augmentation=augmentation))


@dataclass(frozen=True)
class AccelerationStudySettings:
    """What fixes a study of accelerations: trained plain models, speed-ups, methods, and how they are recovered.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        speedups: Wanted speed-ups, by FLOPs.
        methods: What makes the model faster: the first is the one that counts, the others are references. A query
            initialisation of a PatchMerger (located, soft, random, ...), a reducer in its place (average, ...), or a
            control: regions (averages over fixed soft regions), cut (fewer blocks, the same FLOPs) or plain (trained
            on for as long).
        scopes: What a recovery trains: "rear", "all" or "rear-then-all".
        epochs: Lengths of the recovery, in passes over the training images; 0 is no recovery at all.
        recovery: All else about it.
        candidates: Placements that are tried for each speed-up, by a short recovery of the first model, on held-out
            training images; 1 takes the latest that reaches the speed-up.
        calibration_images: Training images that the queries are computed from.
        rounds: Rounds of the speed measurement, in which all models are interleaved.
        speed_batch_size: Images in a batch of the speed measurement.

    Raises:
        ValueError: Settings that cannot be studied.
    """

    models: Sequence[Path]
    speedups: Sequence[float] = (1.4, 1.6, 2.0)
    methods: Sequence[str] = ("best", "random", "average")
    scopes: Sequence[Scope] = ("rear",)
    epochs: Sequence[float] = (0.0, 1.0)
    recovery: RecoverySettings = RecoverySettings()
    candidates: int = 1
    calibration_images: int = 512
    rounds: int = 15
    speed_batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty: name at least one folder of a run of patchmerger fit --merge null")
        if not self.speedups or min(self.speedups) <= 1:
            raise ValueError(f"speedups ({self.speedups}) must be at least one number, each above 1")
        if not self.epochs or min(self.epochs) < 0:
            raise ValueError(f"epochs ({self.epochs}) must be at least one number, each 0 or above, such as 0 and 1")
        for name in ("methods", "scopes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name at least one")
        for name in ("models", "speedups", "methods", "scopes", "epochs"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} ({values}) names one twice")
        check_at_least(1, self, "rounds", "candidates", "speed_batch_size")
        given = self.recovery
        if given.scope != "rear" or (given.epochs, given.steps, given.budget) != (None, None, None):
            raise ValueError(
                "recovery.scope, recovery.epochs, recovery.steps and recovery.budget are what the study varies: give "
                "scopes and epochs"
            )


@dataclass(frozen=True)
class PlacingStudySettings:
    """What fixes a study of placed tokens: trained plain models, numbers of tokens, methods, and the fine-tuning.

    Args:
        models: Folders of runs of "patchmerger fit --merge null", one a seed; their images are used.
        fractions: Tokens, as shares of the model's patches.
        methods: Samplers of patchmerger.place ("subset" drops patches at random), "merger" (a PatchMerger at the FLOPs
            of as many placed tokens) and "placed-merger" (more tokens placed, then merged halfway, at the same FLOPs).
            The first is what the others are compared with.
        fine_tuned: Those of them that are also fine-tuned.
        epochs: Length of the fine-tuning in passes over the training images.
        recovery: All else about it; the plain model is the teacher.
        sampler: That of "placed-merger", and the one whose positions the oracle begins with.
        oracle_images: Test images that the oracle sees, with their labels; 0 leaves it out.
        oracle_steps: Its steps of gradient descent.
        calibration_images: Training images that a merger's queries are computed from.
        workers: Processes that load images; by default those of the models' runs.
        rounds: Rounds of the speed measurement; 0 leaves it out.
        speed_batch_size: Images in a batch of the speed measurement.

    Raises:
        ValueError: Settings that cannot be studied.
    """

    models: Sequence[Path]
    fractions: Sequence[float] = (1.0, 0.5, 0.25, 0.125)
    methods: Sequence[str] = PLACING_METHODS
    fine_tuned: Sequence[str] = FINE_TUNED_METHODS
    epochs: float = 1.0
    recovery: RecoverySettings = RecoverySettings()
    sampler: Sampler = "sobol"
    oracle_images: int = 1000
    oracle_steps: int = 50
    calibration_images: int = 512
    workers: int | None = None
    rounds: int = 15
    speed_batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models is empty: name at least one folder of a run of patchmerger fit --merge null")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"fractions ({self.fractions}) must be at least one share of the patches, up to 1")
        known = (*(name for name in get_args(Sampler) if name not in _NEED_MORE), *MERGING_METHODS)
        for name in ("methods", "fine_tuned"):
            unknown = [method for method in getattr(self, name) if method not in known]
            if unknown:
                raise ValueError(f"{name} ({unknown[0]!r}) must be among {', '.join(known)}")
        if not self.methods or not set(self.fine_tuned) <= set(self.methods):
            raise ValueError(f"fine_tuned ({self.fine_tuned}) must be among methods ({self.methods})")
        for name in ("models", "fractions", "methods", "fine_tuned"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} ({getattr(self, name)}) names one twice")
        if self.sampler in _NEED_MORE or self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler ({self.sampler!r}) must be among {', '.join(known[: -len(MERGING_METHODS)])}")
        if not self.epochs > 0:
            raise ValueError(f"epochs ({self.epochs}) must be above 0; fine_tuned [] leaves the fine-tuning out")
        for name, least in (
            ("oracle_images", 0), ("oracle_steps", 1), ("calibration_images", 2), ("rounds", 0), ("speed_batch_size", 1)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least {least}")
        given = self.recovery
        if given.scope != "rear" or (given.epochs, given.steps, given.budget) != (None, None, None):
            raise ValueError(
                "recovery.scope, recovery.epochs, recovery.steps and recovery.budget are the study's own: give epochs"
            )
