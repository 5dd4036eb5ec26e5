"""What fixes each study that trains its models, as settings that are checked before anything long begins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

from patchmerger.data.settings import Augmentation, DataSettings, OwnData
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.mechanism.options import Norm
from patchmerger.models.settings import MergeSettings
from patchmerger.runs.checks import check_at_least
from patchmerger.runs.narrowing import narrowed
from patchmerger.training.settings import Recipe, TrainingSettings, check_data


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
    """A recipe that several models are trained by, and how often.

    Args:
        model: The plain Vision Transformer.
        merge: The merger.
        init: The trained plain model that all start from: a folder, the folder of a run, an architecture of timm with
            its weights, or "user/name" on the Hugging Face Hub. If not given, model.… is trained from scratch.
        training: How each model is trained.
        seeds: How often each is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which the models are timed in turn.
    """

    merge: MergeSettings = MergeSettings()
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
        model = full.model.resolve(native_size) if full.init is None else full.model
        return replace(narrowed(full, Recipe), model=model, merge=None)


@dataclass(frozen=True)
class ComparisonSettings(StudySettings):
    """What fixes a comparison: a recipe, and the variants that are trained by it.

    Args:
        variants: Any of plain, merged, paper, located (queries that begin with places), average (pooling in the
            merger's place) and shallow (fewer blocks, the merged model's FLOPs); in a config file also names with a
            merger and model of their own.
    """

    variants: Variants = ("plain", "merged")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_one_device("training", self.training)


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
        if merge.keep_rate is not None:
            raise ValueError(
                f"merge.keep_rate ({merge.keep_rate:g}) and num_tokens ({list(self.num_tokens)}) both say how many go "
                "on: leave keep_rate out, or name a cell with it in further"
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

    def resolved(self, *, model_given: bool = False) -> Self:
        """The same with every default that depends on other settings in its place."""
        augmentation = (self.finetuning.augmentation or Augmentation()).resolved(self.downstream.source)
        return replace(
            super().resolved(model_given=model_given), finetuning=replace(self.finetuning, augmentation=augmentation)
        )
