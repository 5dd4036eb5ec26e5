"""What a recovery on kept tokens learns from: views of the training images, and batches of what was kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchmerger.acceleration.kept_tokens import KeptTokens
from patchmerger.data.batches import Batch, EvaluationOrder, Key, Loader, RunOrder, TrainImages
from patchmerger.data.images import ImageSet
from patchmerger.data.module import ResumedData
from patchmerger.data.settings import Augmentation
from patchmerger.data.transforms import EvalTransform, Transform, training_transform
from patchmerger.runs.environment import default_workers
from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu

KeptBatch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Tokens (B, P + N, D), the teacher's scores (B, C) and features (B, F), and targets (B,) or (B, C)."""


class Views(TrainImages):
    """Views of images: the first one as in evaluation, further ones varied as in training, by seed, view and index."""

    def __init__(
        self, images: ImageSet, evaluation: EvalTransform, augmentation: Augmentation | Transform, *, seed: int
    ) -> None:
        varied = training_transform(evaluation.image_size, augmentation, evaluation.preprocessing)
        super().__init__(images, varied, seed=seed)
        self.evaluation = evaluation

    def __getitems__(self, items: Sequence[Key]) -> Batch:
        """A whole batch, for items (view, index)."""
        found = []
        with random_state_kept():
            for view, index in items:
                if view:
                    seed_everything_on_cpu(key(self.seed, view, index))
                found.append(self.varied(index) if view else self.evaluation(self.images[index]))
        return torch.stack(found), self.images.targets[[index for _, index in items]]

    def batches(self, chosen: Sequence[Key], batch_size: int, workers: int | None) -> Iterator[Batch]:
        """The ``chosen`` views in order, in batches."""
        order: Any = [list(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size)]
        return iter(Loader(self, order, workers=default_workers() if workers is None else workers))


def choose_views(images: int, count: int, *, seed: int) -> list[Key]:
    """``count`` views (view, index) of ``images``: one of each image before a second one of any."""
    chosen: list[Key] = []
    for view in range(-(-count // images)):
        left = min(images, count - len(chosen))
        drawn = torch.randperm(images, generator=torch.Generator().manual_seed(key(seed, view)))[:left]
        chosen += [(view, index) for index in sorted(drawn.tolist())]
    return chosen


def is_varied(augmentation: Augmentation | Transform) -> bool:
    """Whether two views of an image differ."""
    if not isinstance(augmentation, Augmentation):
        return True
    return augmentation != Augmentation("none", augmentation.scale, flip=False)


class KeptBatches(Dataset[KeptBatch]):
    """Kept tokens of n views with the targets of these, (n,) or (n, C), by whole batches."""

    def __init__(self, kept: KeptTokens, targets: Tensor) -> None:
        self.kept, self.targets = kept, targets

    def __len__(self) -> int:
        return self.kept.count

    def __getitems__(self, items: Sequence[Key | int]) -> KeptBatch:
        """The batch of these rows, or of these (epoch, row)."""
        rows = [item if isinstance(item, int) else item[1] for item in items]
        return *self.kept.read(rows), self.targets[rows]


class KeptData(ResumedData):
    """Batches of kept tokens for Lightning."""

    def __init__(
        self, train: KeptBatches, validation: KeptBatches | None, *, batch_size: int, epochs: int, seed: int
    ) -> None:
        super().__init__()
        self.train, self.validation, self.batch_size = train, validation, batch_size
        self.epochs, self.seed = epochs, seed

    def train_dataloader(self) -> Loader:
        """The batches from ``first_batch`` on."""
        return Loader(self.train, self._order(self.first_batch))

    def val_dataloader(self) -> Loader | list[Loader]:
        """Everything to watch once, in order."""
        if self.validation is None:
            return []
        return Loader(self.validation, EvaluationOrder(len(self.validation), self.batch_size))

    def _order(self, first: int = 0) -> RunOrder:
        return RunOrder(len(self.train), self.batch_size, self.epochs, seed=self.seed, first=first)
