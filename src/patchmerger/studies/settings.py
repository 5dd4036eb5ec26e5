"""What a study is told beside the recipe of its trainings: variants, the grid of a sweep, what it is transferred to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.mechanism.options import Norm
from patchmerger.models.settings import MergeSettings
from patchmerger.training.settings import TrainingSettings


@dataclass(frozen=True)
class Variant:
    """A variant of one's own: what it changes.

    Args:
        merge: Its merger; null for none.
        model: Arguments for timm.create_model that differ, such as depth.
    """

    merge: MergeSettings | None = None
    model: dict[str, Any] | None = None


Variants: TypeAlias = list[str] | dict[str, Variant | None]
"""Names of ready-made variants, or names with what they change."""


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
        ValueError: No value for ``after`` or ``num_tokens``, or one given twice.
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


@dataclass(frozen=True)
class Downstream:
    """What models that were trained upstream are evaluated on: few-shot on frozen features, and fine-tuned.

    Args:
        data: The images.
        shots: Training images of each class in few-shot evaluation, k.
        draws: How often these are drawn; the accuracy of a seed is the mean over them.
        finetuning: How each is fine-tuned.
    """

    data: DataSettings = DataSettings()
    shots: Sequence[int] = (1, 5, 10, 25)
    draws: int = 5
    finetuning: FineTuning = FineTuning()
