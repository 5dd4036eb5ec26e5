"""Which of several placements of the same speed-up to take: by how little each changes the scores, as it is or trained.

Untrained is enough to rule out bad ones, in seconds: of a ViT-S/14 on CIFAR-10 (95.3%, 49 patches) at 1.5 times fewer
FLOPs, 8 tokens after block 7 keep 79% and 14 after block 6 keep 88%, and after the same recovery in two minutes of one
core they lose 2.8 and 1.9 points. The nearest need not be the best: DPC-KNN's clusters, 14 after block 6, go from 92.0
to 93.6%; 20 after block 5, whose steps are dearer, from 92.7 to 92.9% in the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.acceleration.agreement import compare_scores, scores_of
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.placement import ChosenPlacement
from patchmerger.acceleration.query_initialisation import calibrate, recommended_query_init
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import QueryInit, RecoverySettings
from patchmerger.data.settings import Augmentation
from patchmerger.data.splits import ImageSplits
from patchmerger.data.transforms import Transform
from patchmerger.hosts import find_host
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier, FoundClassifier, divergence
from patchmerger.runs.random_state import seeded

SHARE = 0.2
"""Of the length of the recovery to come, for each trial."""

_HELD_OUT = 5000
_NEAR = 1.5
"""Times the least divergence: a later merge recovers more in the same time, as its steps are cheaper."""


@dataclass(frozen=True)
class PlacementTrials:
    """Tries placements by a short recovery each, and compares them on held-out training images.

    The test images are never looked at; without a validation split, every tenth training image is held out. A trial
    takes :data:`SHARE` of the length of the recovery, and trains the rear alone.
    """

    teacher: FoundClassifier
    images: ImageSplits
    recovery: RecoverySettings
    labels: bool
    augmentation: Augmentation | Transform
    workers: int | None
    seed: int
    shared_cache: Path | None = None

    def try_placement(self, placement: ChosenPlacement, out: Path) -> dict[str, Any]:
        """Recover a merged model shortly, in the folder ``out``, and compare it with the plain one.

        Returns:
            ``divergence`` from the plain model's scores in nats, ``agreement``, ``accuracy`` where there are labels,
            and the number of ``images`` held out.
        """
        with seeded(self.seed):
            student = placement.merged(self.teacher.model, self._method)
        if placement.reducer == "patchmerger":
            batch = self.teacher.prepared(self._splits.train, 64, seed=self.seed)
            calibrate(student.to(self._device), batch, method=self._method, seed=self.seed)
        distill(
            student.cpu(), self.teacher.model, self._splits, preprocessing=self.teacher.preprocessing,
            recovery=_shortened(self.recovery), labels=self.labels, augmentation=self.augmentation,
            workers=self.workers, seed=self.seed, out=out, shared_cache=self.shared_cache, progress=False,
        )  # fmt: skip
        held = self._held_out
        targets = held.targets if self.labels else None
        found = compare_scores(
            self._scores(student), self._scores(self.teacher.model), targets, multi_label=self.images.multi_label
        )
        return {name: found[name] for name in ("divergence", "agreement", "accuracy", "images")}

    @property
    def _method(self) -> Any:
        return recommended_query_init(recovers=True, grid=find_host(self.teacher.model).grid is not None)

    @property
    def _device(self) -> Any:
        return device_of(self.recovery)

    @property
    def _splits(self) -> ImageSplits:
        if self.images.validation is not None:
            return self.images
        train = self.images.train
        rest = [index for index in range(len(train)) if index % 10]
        return replace(self.images, train=train.subset(rest), validation=train.subset(range(0, len(train), 10)))

    @property
    def _held_out(self) -> Any:
        return self._splits.validation.drawn(_HELD_OUT, self.seed)  # type: ignore[union-attr]

    def _scores(self, net: Any) -> Tensor:
        return scores_of(
            Classifier(copy.deepcopy(net).to(self._device)), self._held_out, self.teacher, workers=self.workers,
            progress=False,
        )  # fmt: skip


def least_changed(
    teacher: FoundClassifier,
    placements: Sequence[ChosenPlacement],
    images: Tensor,
    *,
    query_init: QueryInit,
    multi_label: bool,
    device: torch.device,
) -> ChosenPlacement:
    """The latest placement whose untrained merged model differs about as little as any; all are in ``compared``.

    The latest, as its recovery is the cheapest. Images are normalised training images, (B, 3, S, S).
    """
    plain, found = _scores_of(teacher.model, images, device), []
    for place in placements:
        with seeded(0):
            merged = place.merged(teacher.model, query_init)
        found.append(float(divergence(_scores_of(merged, images, device), plain, multi_label=multi_label)))
    compared = [
        {
            "reducer": place.reducer, "after": place.after, "num_tokens": place.num_tokens,
            "predicted": place.predicted, "divergence": gap,
        }
        for place, gap in zip(placements, found, strict=True)
    ]  # fmt: skip
    chosen = next(place for place, gap in zip(placements, found, strict=True) if gap <= _NEAR * min(found))
    return replace(chosen, compared=compared)


def _scores_of(net: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """Scores (B, C)."""
    classifier = Classifier(copy.deepcopy(net).to(device))
    like = next(classifier.parameters())
    with eval_mode(classifier), torch.inference_mode():
        return torch.cat([classifier(images[i : i + 32].to(like)) for i in range(0, len(images), 32)]).float()


def best_placement(placements: Sequence[ChosenPlacement], trials: Sequence[dict[str, Any]]) -> ChosenPlacement:
    """The placement after whose trial the scores differed least from the plain model's."""
    return min(zip(placements, trials, strict=True), key=lambda tried: float(tried[1]["divergence"]))[0]


def _shortened(recovery: RecoverySettings) -> RecoverySettings:
    """The same, of the rear, for :data:`SHARE` of its length."""
    if recovery.steps is not None:
        return replace(recovery, scope="rear", steps=max(1, round(SHARE * recovery.steps)))
    if recovery.seconds is not None:
        return replace(recovery, scope="rear", budget=f"{SHARE * recovery.seconds:.3f}s")
    return replace(recovery, scope="rear", epochs=SHARE * (1.0 if recovery.epochs is None else recovery.epochs))
